"""OpenTelemetry tracing, enabled by its standard environment variables."""

import os

from fastapi import FastAPI

from ddcat.extras import install
from ddcat_serve.errors import ServeError

__all__ = ["trace"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def trace(app: FastAPI) -> bool:
    """
    Send a span for each request to the collector named in the environment, if any; return whether there is one.

    ServeError if tracing is enabled and OpenTelemetry is not installed.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as cause:
        raise ServeError(f"{_ENDPOINTS[0]} is set, and OpenTelemetry is not installed: {install('otel')}") from cause
    provider = TracerProvider(resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "ddcat-serve")}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, excluded_urls="v2/health,metrics")
    return True
