"""The ground floor of ddcat: what every stage shares. Imports the standard library, numpy and pydantic only."""

__version__ = "0.1.0"
