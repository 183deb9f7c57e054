"""The `Host` allow-list: what a browser may be made to say, and what people type."""

from __future__ import annotations

import pytest

from orcinus.server.hosts import is_allowed, is_loopback


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1"])
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:65535", "[::1]", "[::1]:80", "127.9.9.9:1", "[0:0::1]:9"],
)
def test_what_this_machine_calls_itself_passes(host: str, address: str) -> None:
    assert is_allowed([host], address)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io:8000",
        "evil.example:80@127.0.0.1",
        "127.0.0.1@evil.example",
        "127.0.0.1, evil.example",
        "localhost:evil",
        "localhost:",
        "localhost:123456",
        "[::1",
        "::1",
        "[::1]evil",
        "[::1%25lo]",
        "[::ffff:10.0.0.1]",
        "0.0.0.0:8000",
        "10.0.0.1",
        "0x7f.1",
        "2130706433",
        "",
        " localhost",
        "localhost\n",
        "lоcalhost",
        "localhost/../evil",
        "a" * 300,
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_any_other_name_is_refused(host: str, address: str) -> None:
    assert not is_allowed([host], address)


def test_the_name_that_the_user_gave_passes_and_no_other() -> None:
    assert is_allowed(["Box.Internal:8000"], "127.0.0.1", "box.internal")
    assert not is_allowed(["box.internal.evil.example"], "127.0.0.1", "box.internal")


def test_two_names_are_none() -> None:
    assert not is_allowed(["localhost", "localhost"], "127.0.0.1")


def test_no_name_is_no_browser() -> None:
    assert is_allowed([], "127.0.0.1")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "2001:db8::1"])
def test_a_server_for_others_has_names_that_we_cant_know(address: str) -> None:
    assert is_allowed(["api.example"], address)


@pytest.mark.parametrize(
    ("address", "expected"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("localhost", False), ("", False)]
)
def test_loopback_is_an_address(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
