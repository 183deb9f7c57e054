"""The OpenAPI document is whole, well-formed, and says what the server does."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from served import Served
from test_life import NoEngine, _routes

from orcinus.server.app import create_app
from orcinus.server.openapi import openapi_document

assert NoEngine
DOCUMENT = openapi_document("1")


def references(node: Any) -> set[str]:
    """Every $ref in it."""
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*(references(value) for value in node.values()))
    return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()


def test_every_route_is_described_and_nothing_else() -> None:
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in _routes(create_app)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods} == routes


def test_every_reference_leads_somewhere() -> None:
    names = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert references(DOCUMENT) <= names


def test_every_operation_says_how_it_refuses_in_openais_shape() -> None:
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}


@pytest.mark.slow
def test_it_is_served_and_its_required_fields_are_required(served: Served) -> None:
    document = httpx.get(f"{served.url}/openapi.json").json()
    assert document["paths"].keys() == DOCUMENT["paths"].keys()
    for path, methods in document["paths"].items():
        if "post" not in methods:
            continue
        name = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        required = document["components"]["schemas"][name].get("required", [])
        refused = httpx.post(served.url + path, json={})
        assert refused.status_code == 400
        if required:
            assert refused.json()["error"]["param"] == required[0]
