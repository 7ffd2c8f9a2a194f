"""Models that are ready to serve, each with its evidence: their index, and fetching them with every byte checked."""
