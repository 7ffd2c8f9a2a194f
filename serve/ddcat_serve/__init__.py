"""Running exported segmenters: engines and the server. Never imports torch."""
