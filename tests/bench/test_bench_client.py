"""One request at a time, against servers that do right, wrong, and nothing."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from strange_servers import (
    DONE,
    Handler,
    answers,
    ask,
    chat_chunk,
    event,
    observe,
    serving,
    streams,
    text_chunk,
    usage_chunk,
)

from orcinus.bench.asks import Ask, FailureKind, Observation
from orcinus.bench.client import StreamingClient
from orcinus.bench.endpoint import Target, connections, root_of, served_model
from orcinus.errors import ConfigurationError


def in_order(one: Observation) -> bool:
    instants = [one.sent_at, *one.token_instants, one.last_at, one.ended_at]
    return instants == sorted(instants)


def test_a_stream_is_counted_by_its_usage() -> None:
    one = observe(streams(text_chunk("a"), text_chunk("bc"), text_chunk("", "length"), usage_chunk(7, 5), DONE))
    assert one.failure is None
    assert (one.prompt_tokens, one.output_tokens, one.num_output) == (7, 5, 5)
    assert len(one.token_instants) == 2
    assert one.finish_reason == "length"
    assert in_order(one)
    assert 0 < one.ttft <= one.e2el


def test_without_usage_the_chunks_are_counted() -> None:
    one = observe(streams(text_chunk("a"), text_chunk(""), text_chunk("b"), text_chunk("", "stop"), DONE))
    # The chunk without text is a token whose characters aren't complete; the one that ends is none.
    assert (one.output_tokens, one.num_output) == (None, 3)


def test_chunks_that_tell_their_token_ids_are_counted_by_them() -> None:
    ids = [event({"choices": [{"text": "", "token_ids": ids}]}) for ids in ([5, 6], [7], [])]
    one = observe(streams(*ids, text_chunk("", "length"), DONE))
    assert (one.num_output, len(one.token_instants)) == (3, 2)


def test_a_chat_answer_begins_with_its_text_and_not_with_the_role() -> None:
    chunks = [
        chat_chunk({"role": "assistant", "content": ""}),
        chat_chunk({"reasoning_content": "hm"}),
        chat_chunk({"content": "yes"}),
        chat_chunk({"tool_calls": [{"index": 0}]}),
        chat_chunk({}, "stop"),
    ]
    one = observe(streams(*chunks, DONE), kind="chat")
    assert (one.num_output, len(one.token_instants)) == (3, 3)
    assert one.failure is None


def test_events_that_came_in_one_write_came_at_one_instant() -> None:
    one = observe(streams(text_chunk("a") + text_chunk("b") + text_chunk("", "stop") + DONE))
    assert one.gaps == [0.0]
    assert one.num_output == 2


def test_a_model_that_ends_at_once_is_no_failure() -> None:
    one = observe(streams(chat_chunk({"role": "assistant", "content": ""}), chat_chunk({}, "stop"), DONE), kind="chat")
    assert one.failure is None
    assert (one.num_output, len(one.token_instants), one.tpot) == (0, 1, None)


def test_an_answer_that_gave_its_reason_is_whole_without_done() -> None:
    assert observe(streams(text_chunk("a"), text_chunk("", "stop"))).failure is None


@pytest.mark.parametrize(
    ("handle", "kind", "detail"),
    [
        (streams(text_chunk("a"), text_chunk("b"), cut=True), FailureKind.CUT, ""),
        (streams(text_chunk("a"), text_chunk("b")), FailureKind.CUT, "after 2 tokens"),
        (streams(DONE), FailureKind.EMPTY, "without an answer"),
        (streams(text_chunk("a"), event({"error": {"message": "sorry"}}), DONE), FailureKind.ERROR_EVENT, "sorry"),
        (streams(event({"error": "bare words"})), FailureKind.ERROR_EVENT, "bare words"),
        (streams(b"data: no json\n\n"), FailureKind.FOREIGN, "can't be read"),
        (streams(event({"choices": 3})), FailureKind.FOREIGN, "choices"),
        (answers(b"<html>", content_type="text/html"), FailureKind.FOREIGN, "text/html"),
        (answers(b'{"choices": []}'), FailureKind.FOREIGN, "application/json"),
        (answers(b'{"error": {"message": "too many"}}', status=429), FailureKind.STATUS, "too many"),
        (answers(b"gateway \xff", status=502), FailureKind.STATUS, "gateway \ufffd"),
    ],
)
def test_what_is_no_answer_is_a_failure_of_its_kind(handle: Handler, kind: FailureKind, detail: str) -> None:
    one = observe(handle)
    assert one.failure is not None
    assert one.failure.kind is kind
    assert detail in one.failure.detail
    assert one.ended_at >= one.sent_at > 0


def test_failures_are_labelled_with_their_status() -> None:
    one = observe(answers(b"", status=503))
    assert one.failure is not None
    assert one.failure.label == "HTTP 503"


def test_nobody_listening_is_a_failure_to_connect() -> None:
    async def run() -> Observation:
        async with serving(answers(b"")) as url:
            pass
        async with connections(None, 30.0) as session:
            one = Observation(0.0, 0.0)
            await StreamingClient(session, Target(base_url=url, model="m", kind="chat")).send(Ask("a", 1), one)
            return one

    one = asyncio.run(run())
    assert one.failure is not None
    assert one.failure.kind is FailureKind.CONNECTION


def test_a_server_that_never_ends_meets_the_time_limit() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    one = observe(hang, timeout=0.05)
    assert one.failure is not None
    assert one.failure.kind is FailureKind.TIMEOUT


def test_requests_hold_standard_fields_and_ignore_eos_only_where_asked() -> None:
    seen: list[tuple[str, str | None, dict[str, object]]] = []

    async def note(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, request.headers.get("authorization"), json.loads(await request.read())))
        return web.Response(status=500)

    asyncio.run(ask(note, [Ask("hi", None)], kind="chat"))
    asyncio.run(ask(note, [Ask([5, 6], 3)]))
    streamed = {"model": "m", "temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}}
    assert seen == [
        ("/v1/chat/completions", "Bearer key", streamed | {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", "Bearer key", streamed | {"prompt": [5, 6], "max_tokens": 3}),
    ]
    whole = Target(base_url="http://x", model="m", kind="completions", ignore_eos=True).body(Ask("a", 1), stream=False)
    assert json.loads(whole) == {"model": "m", "temperature": 0.0, "prompt": "a", "max_tokens": 1, "ignore_eos": True}


@pytest.mark.parametrize(("kind", "prompt"), [("chat", [5, 6]), ("completions", [{"role": "user", "content": "a"}])])
def test_a_prompt_that_the_endpoint_cannot_take_is_refused(kind: str, prompt: object) -> None:
    with pytest.raises(ConfigurationError, match="ask them of --endpoint"):
        Target(base_url="http://x", model="m", kind=kind).body(Ask(prompt, 1), stream=True)


@pytest.mark.parametrize("address", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_address_may_end_in_v1(address: str) -> None:
    assert root_of(address) == "http://h:1"


@pytest.mark.parametrize(
    ("handle", "complaint"),
    [
        (answers(b'{"data": []}'), "lists no model"),
        (answers(b"hello"), "give --model"),
        (answers(b'{"error": {"message": "no key"}}', status=401), "HTTP 401: no key"),
    ],
)
def test_an_endpoint_that_lists_no_model_is_refused(handle: Handler, complaint: str) -> None:
    async def run() -> str:
        async with serving(handle) as url, connections(None, 30.0) as session:
            return await served_model(session, url)

    with pytest.raises(ConfigurationError, match=complaint):
        asyncio.run(run())


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="http://"):
        root_of("localhost:8000")
