"""Certificates by randomised smoothing, of a checkpoint or of an engine: `ddcat attack --certify`."""
