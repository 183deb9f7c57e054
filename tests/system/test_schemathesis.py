"""schemathesis over our OpenAPI document: what it makes of it is answered as the document says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from real_server import MODEL, start, url_of
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orcinus.server.openapi import openapi_document

pytestmark = pytest.mark.slow
EXAMPLES = 15
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
# It has no end.
ENDLESS = "/v1/live"
SCHEMA = schemathesis.openapi.from_dict(openapi_document("1")).exclude(path=ENDLESS)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]
PATIENT = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    options = ("--port", "0", "--threads", "1", "--max-model-len", "128", "--kv-cache-gib", "0.05")
    with start(str(MODEL), *options) as process:
        yield url_of(process)
        process.terminate()


def whole(case: Any) -> Any:
    """As an answer in one piece: what a stream holds is no JSON that a schema could describe."""
    if isinstance(case.body, dict) and case.body.get("stream"):
        case.body = case.body | {"stream": False}
    return case


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_answer_is_as_the_document_says(url: str, operation: Any) -> None:
    @PATIENT
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    def ask(case: Any) -> None:
        whole(case).call_and_validate(base_url=url, checks=CHECKS, timeout=60)

    ask()


WITH_BODY = [operation for operation in OPERATIONS if operation.method == "post"]


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda operation: operation.label)
def test_what_the_document_forbids_is_refused(url: str, operation: Any) -> None:
    @PATIENT
    @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def ask(case: Any) -> None:
        whole(case).call_and_validate(base_url=url, checks=[*CHECKS, negative_data_rejection], timeout=60)

    ask()


def test_everything_but_the_endless_is_asked_for() -> None:
    document = openapi_document("1")
    described = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert {operation.label for operation in OPERATIONS} == described - {f"GET {ENDLESS}"}
