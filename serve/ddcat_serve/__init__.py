"""HTTP and gRPC server for exported bundles. Never imports torch."""
