"""Perturbations that a bound of each value leaves out: L2, one for all images, a patch, and the least that is needed."""
