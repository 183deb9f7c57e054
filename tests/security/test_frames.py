"""Frames between processes, damaged: a typed error or a message, and an engine that goes on (S1, G3)."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from guarded import MODEL

from orcinus.core.plan import TokenLogprobs
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, SamplingParams, pack_tokens
from orcinus.engine.child import private_directory
from orcinus.engine.client import EngineClient
from orcinus.engine.messages import (
    Abort,
    Add,
    EngineDescription,
    EngineUnreadable,
    EngineUp,
    Failed,
    FromEngine,
    FrontGone,
    FrontReady,
    Hello,
    Iteration,
    Member,
    OrderToEngine,
    Outputs,
    Part,
    Ping,
    ReportFromEngine,
    ReportFromFront,
    Shutdown,
    Timeline,
    ToEngine,
    Watch,
)
from orcinus.engine.supervisor import EngineSupervisor
from orcinus.errors import InvalidRequest

pytestmark = pytest.mark.slow
FRAMES = 20_000
# msgspec's own, what it raises for a string that isn't UTF-8, and what a request's bounds raise.
TYPED = (msgspec.DecodeError, UnicodeDecodeError, InvalidRequest)
NOT_UTF8 = b"\x82\xa4type\xa7outputs\xa8progress\x91\x91\xa1\xff"
PARAMS = SamplingParams(
    n=2, temperature=0.5, top_p=0.9, logit_bias={5: 1.0}, stop=("a",), seed=7, logprobs=3, max_tokens=9
)
REQUEST = Request(request_id="r", prompt=pack_tokens([5, 6, 7]), params=PARAMS, resumed=(b"\1\0\0\0", b""))
LOGPROBS = TokenLogprobs(-0.5, 1, (5, 6), (-0.5, -1.0))
DESCRIPTION = EngineDescription("m", "A", 1, "float32", "cpu", "f", "w", 512, (2,), 64, 64, 4, 64, labels=("a", "b"))
TALK: tuple[tuple[Any, tuple[msgspec.Struct, ...]], ...] = (
    (ToEngine, (Add(REQUEST), Abort("r", 1, FinishReason.STOP), Hello(), Ping(), Watch(True))),
    (
        FromEngine,
        (
            Outputs((Progress("r", 0, (5,), (LOGPROBS,), finish_reason=FinishReason.LENGTH),), 1, 2, 3, 4, 5, 6),
            Timeline((Member(1, "r", 0, 3),), (Iteration(1, 0.5, 0.01, 1, (Part(1, 0, 3, True),)),), 1, 2, 3, 4, 5),
        ),
    ),
    (OrderToEngine, (Ping(), FrontGone(b"front"), Shutdown())),
    (ReportFromEngine, (DESCRIPTION, Failed("no", 3))),
    (ReportFromFront, (FrontReady(), EngineUnreadable(), Failed("no"))),
)
# Lengths that promise more than is there, other types, extensions, and a tag of nobody's.
PIECES = (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xc0")
PIECES += (
    b"\xc1",
    b"\xcb\x7f\xf8\0\0\0\0\0\0",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7,
    b"\xc7\5\1abcde",
    b"\x91",
)


def damaged(frames: tuple[bytes, ...], rng: random.Random) -> bytes:
    """One of them with some of its bytes flipped, dropped, put in, or with a piece of another."""
    frame = bytearray(rng.choice(frames))
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(frame) + 1)
        match rng.randrange(6):
            case 0 if place < len(frame):
                frame[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(frame):
                frame[place] = rng.randrange(256)
            case 2:
                del frame[place : place + rng.choice((1, 2, 8))]
            case 3:
                frame[place:place] = rng.choice(PIECES)
            case 4:
                other = rng.choice(frames)
                frame[place:] = other[rng.randrange(len(other)) :]
            case 5 if rng.random() < 0.2:
                frame = bytearray(rng.randbytes(rng.randrange(200)))
    return bytes(frame)


def strange(messages: tuple[msgspec.Struct, ...], seed: int, count: int) -> Iterator[bytes]:
    """So many damaged frames."""
    frames, rng = tuple(map(msgspec.msgpack.encode, messages)), random.Random(seed)
    yield from (b"", b"\xc0", b"\x81" * 5000, b"\x91" * 5000, b"\xff" * 100)
    yield from (damaged(frames, rng) for _ in range(count))


@pytest.mark.parametrize(("union", "messages"), TALK, ids=["to engine", "from engine", "order", "engine", "front"])
def test_a_damaged_frame_is_a_typed_error_or_a_message(union: Any, messages: tuple[msgspec.Struct, ...]) -> None:
    decoder = msgspec.msgpack.Decoder(union)
    for message in map(msgspec.msgpack.encode, messages):
        assert msgspec.msgpack.encode(decoder.decode(message)) == message
    outcomes = {"read": 0, "refused": 0}
    for number, frame in enumerate(strange(messages, seed=len(messages), count=FRAMES)):
        try:
            message = decoder.decode(frame)
        except TYPED:
            outcomes["refused"] += 1
        except BaseException as error:
            error.add_note(f"frame {number}: {frame!r}")
            raise
        else:
            assert isinstance(message, msgspec.Struct)
            outcomes["read"] += 1
    assert min(outcomes.values()) > FRAMES // 100, outcomes


def unreadable(count: int) -> list[bytes]:
    """Frames that no decoder of the engine takes."""
    decoder, found = msgspec.msgpack.Decoder(ToEngine), []
    for frame in strange((Add(REQUEST), Abort("r"), Hello(), Watch(True)), seed=11, count=4 * count):
        try:
            decoder.decode(frame)
        except TYPED:
            found.append(frame)
    assert len(found) >= count
    return found[:count]


def question(name: str) -> Request:
    """Always the same."""
    return Request(request_id=name, prompt=pack_tokens([5, 6, 7]), params=SamplingParams(max_tokens=8, seed=1))


async def answer(client: EngineClient, name: str) -> list[int]:
    """Its tokens."""
    with client.submit(question(name)) as stream:
        return [token async for progress in stream for token in progress.tokens]


def test_the_engine_goes_on_after_frames_that_nobody_can_read(tmp_path: Path) -> None:
    options = {"model": str(MODEL), "threads": 1, "kv_cache_gib": 0.05, "max_batch_size": 4, "max_batch_tokens": 64}
    command = [sys.executable, "-m", "orcinus.engine.process", "--config", json.dumps(options)]

    async def main() -> None:
        with private_directory(tmp_path) as directory, zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            said: list[str] = []
            client = EngineClient(b"front", lambda: pytest.fail("the engine sent something unreadable"))
            supervisor = EngineSupervisor(lambda _: command, directory, [client], said.append)
            try:
                await supervisor.start()
                before = await answer(client, "before")
                socket.connect(f"ipc://{next(directory.glob('engine-*'))}")
                for number, frame in enumerate(unreadable(2000)):
                    socket.send_multipart([frame] * (1 + number % 3))
                assert await answer(client, "after") == before
                assert len(before) == 8
                assert len(list(directory.glob("engine-*"))) == 1, said
            finally:
                socket.close(linger=0)
                await supervisor.close()
                await client.close()

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("frame", [b"", b"no frame of ours", NOT_UTF8, b"\x91" * 100, msgspec.msgpack.encode(Hello())])
def test_a_front_end_asks_for_another_engine_when_it_cant_read_this_one(tmp_path: Path, frame: bytes) -> None:
    async def main() -> None:
        complained = asyncio.Event()
        client = EngineClient(b"front", complained.set)
        with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as engine:
            engine.bind(f"ipc://{tmp_path}/engine")
            client.engine_up(EngineUp(0, f"{tmp_path}/engine", DESCRIPTION))
            front, _ = await engine.recv_multipart()
            await engine.send_multipart([front, frame])
            await complained.wait()
            await client.close()
            engine.close(linger=0)

    asyncio.run(asyncio.wait_for(main(), 20))
