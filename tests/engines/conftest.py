from tests.bundles import build, bundle, cache, make_bundle, oracle, picture

__all__ = ["build", "bundle", "cache", "make_bundle", "oracle", "picture"]  # fixtures
