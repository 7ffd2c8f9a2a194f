"""Schemathesis over the API's own description: nothing that it sends ends in a 5xx or in an answer that is not described."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_answers_are_described(models: Models) -> None:
    import schemathesis  # noqa: PLC0415 -- slow: it would be imported in every process
    from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: PLC0415

    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(models, Settings(max_bytes=65536, max_pixels=5000)))
    seen = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        # what a schema cannot say of an image is refused, and that is no fault
        @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def answered(case: Any) -> None:
            seen.add(case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code)

        answered()
    assert {200, 400, 404} <= seen


def test_examples_of_the_description_are_answered(client: Any) -> None:
    described = client.get("/openapi.json").json()
    infer = described["paths"]["/v2/models/{name}/infer"]["post"]
    example = infer["requestBody"]["content"]["application/json"]["example"]
    example["inputs"][0] |= {"shape": [1, 8, 8, 3], "data": [1] * 192}  # the small model takes no image of 1 x 2
    assert client.post("/v2/models/small/infer", json=example).status_code == 200
    assert {"200", "400", "404", "408", "413", "429", "431", "503"} <= set(infer["responses"])
    assert "image/webp" in described["paths"]["/v1/segment"]["post"]["requestBody"]["content"]
