import signal

# A shell starts what it runs in the background with SIGINT ignored, and whoever is started then ignores it too: the commands
# that tests interrupt would. A signal that is handled here is back to its default in them.
signal.signal(signal.SIGINT, signal.default_int_handler)
