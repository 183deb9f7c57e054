"""Server-sent events: the examples of the standard, and every way to cut them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.bench.sse import EventParser


def events(stream: bytes) -> list[bytes]:
    return EventParser().feed(stream)


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        # WHATWG HTML, section 9.2.6.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n", None),
        (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
        (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
        (b"\xef\xbb\xbfdata: marked\n\n", [b"marked"]),
        (b"event: error\r\ndata: {}\r\nretry: 3\r\n\r\n", [b"{}"]),
        (b"data: never ended", []),
        (b": keep-alive\n\n\n\n", []),
    ],
)
def test_streams_of_the_standard_give_its_events(stream: bytes, data: list[bytes] | None) -> None:
    expected = [b"first event", b"second event"] if data is None else data
    assert events(stream) == expected


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from([b"data: \xc3\xa4", b"data:x", b"", b": c", b"\r", b"\n", b"\r\n", b"data"]), max_size=12),
    st.data(),
)
def test_events_do_not_depend_on_how_the_bytes_were_cut(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces) + b"\n\n\n"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=6)) | {0, len(stream)})
    parser = EventParser()
    assert [e for a, b in pairwise(cuts) for e in parser.feed(stream[a:b])] == events(stream)
