"""Evaluation: attacks on a checkpoint, an engine beside the PyTorch model that it was made from, their speed."""
