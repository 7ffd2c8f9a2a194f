"""What corruptions of images leave of a model or an engine: `ddcat attack --suite corruptions`."""
