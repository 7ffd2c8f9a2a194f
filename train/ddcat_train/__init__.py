"""Training of robust segmenters: networks, data, attacks, methods, the loop and its evaluation. Needs torch."""
