"""`python -m ddcat`, and what torchrun starts: `torchrun -m ddcat train`."""

from ddcat.cli import main

main()
