"""The ground floor of ddcat: what every stage shares. Imports what every installation has, no torch, no engine."""

__version__ = "0.1.0"
