from tests.bundles import build, bundle, cache, make_bundle, make_graph, oracle, picture

__all__ = ["build", "bundle", "cache", "make_bundle", "make_graph", "oracle", "picture"]  # fixtures
