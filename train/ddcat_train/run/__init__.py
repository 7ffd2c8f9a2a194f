"""One training run: its loop, its folder, and what it leaves for people to read."""
