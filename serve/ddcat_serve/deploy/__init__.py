"""Beyond one machine: what other servers need to serve a bundle."""
