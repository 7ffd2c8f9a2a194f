"""The generated data set `scenes`."""
