"""Engine, supervisor and client: a fake engine in a real process, killed, stopped and driven mad."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, SamplingParams, pack_tokens, unpack_tokens
from orcinus.engine.child import private_directory
from orcinus.engine.client import EngineClient, Stream
from orcinus.engine.process import FOREIGN_END
from orcinus.engine.supervisor import MAX_SHORT_LIVES, EngineSupervisor
from orcinus.errors import CheckpointError, ConfigurationError, EngineDied

pytestmark = pytest.mark.slow
FAKE_ENGINE = [sys.executable, str(Path(__file__).parent / "fake_engine.py")]
FOREVER = 10**9


def request(request_id: str, *, n: int = 1, max_tokens: int = 4, prompt: tuple[int, ...] = (10, 11, 12)) -> Request:
    params = SamplingParams(n=n, max_tokens=max_tokens, seed=0)
    return Request(request_id=request_id, prompt=pack_tokens(prompt), params=params)


async def read(stream: Stream) -> list[Progress]:
    return [progress async for progress in stream]


@dataclass
class House:
    """One engine after the other, and one front end."""

    client: EngineClient
    supervisor: EngineSupervisor

    def engine_pid(self) -> int:
        """Of the engine of the moment."""
        assert self.supervisor._life is not None
        return self.supervisor._life.process.pid


def run(tmp_path: Path, body: Callable[[House], Awaitable[None]], *options: str) -> None:
    """`body` with an engine and a client, under a time limit; afterwards nothing may be left behind."""

    async def main() -> None:
        with private_directory(tmp_path) as directory:
            client = EngineClient(b"test", lambda: supervisor.replace_engine())
            supervisor = EngineSupervisor(lambda _: [*FAKE_ENGINE, *options], directory, [client], lambda text: None)
            try:
                await supervisor.start()
                await asyncio.wait_for(body(House(client, supervisor)), 60)
            finally:
                await supervisor.close()
                await client.close()
        assert list(tmp_path.glob("orcinus-*")) == []
        assert client.num_live == 0

    asyncio.run(main())


def test_requests_get_their_own_progress_in_order_and_each_answer_ends_once(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        streams = [house.client.submit(request(f"r{i}", n=1 + i % 3, prompt=(20 + i, 30 + i))) for i in range(8)]
        assert house.client.num_live == 8
        for i, progress in enumerate(await asyncio.gather(*map(read, streams))):
            for index in range(1 + i % 3):
                own = [one for one in progress if one.index == index]
                assert [token for one in own for token in one.tokens] == [20 + i, 30 + i] * 2
                assert [one.finish_reason for one in own] == [None, None, None, FinishReason.LENGTH]
        assert house.client.num_live == 0
        assert house.client.stats is not None
        assert (house.client.stats.num_running, house.client.stats.progress) == (0, ())

    run(tmp_path, body)


def test_the_socket_lies_in_a_private_directory(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        (directory,) = tmp_path.glob("orcinus-*")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    run(tmp_path, body)


def test_leaving_a_stream_aborts_it_in_the_engine(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)

    async def body(house: House) -> None:
        lines = await asyncio.to_thread(log.open)
        with house.client.submit(request("left", max_tokens=FOREVER)) as stream:
            await anext(stream)
        assert (await asyncio.to_thread(lines.readline)).startswith("add left")
        assert await asyncio.to_thread(lines.readline) == "abort left None abort\n"
        with house.client.submit(request("whole")) as stream:
            await read(stream)
        await house.supervisor.close()
        assert [line.split()[0] for line in lines] == ["add", "shutdown"]
        lines.close()

    # The engine opens the pipe before it describes itself, so the reader must be there first.
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        run(tmp_path, body, "--log", str(log))
    finally:
        os.close(reader)


def test_an_abort_by_stop_string_ends_one_answer_with_stop(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        stream = house.client.submit(request("r", n=2, max_tokens=FOREVER))
        await anext(stream)
        stream.abort(1, FinishReason.STOP)
        async for progress in stream:
            if progress.finish_reason is not None:
                break
        assert (progress.index, progress.finish_reason) == (1, FinishReason.STOP)
        stream.abort()
        assert [one.finish_reason for one in await read(stream) if one.finish_reason] == [FinishReason.ABORT]

    run(tmp_path, body)


async def whole_answers(house: House, streams: list[Stream]) -> None:
    """Every answer is its prompt repeated, exactly once, with one end."""
    for stream, progress in zip(streams, await asyncio.gather(*map(read, streams)), strict=True):
        prompt = unpack_tokens(stream.request.prompt)
        for index in range(stream.request.params.n):
            own = [one for one in progress if one.index == index]
            tokens = [token for one in own for token in one.tokens]
            assert tokens == [prompt[i % len(prompt)] for i in range(stream.request.max_tokens)]
            assert [one.finish_reason for one in own if one.finish_reason] == [FinishReason.LENGTH]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_streams_go_on_exactly_once_on_the_next_engine(tmp_path: Path, number: signal.Signals) -> None:
    async def body(house: House) -> None:
        streams = [house.client.submit(request(f"r{i}", n=1 + i % 2, max_tokens=300)) for i in range(6)]
        await anext(streams[0].__aiter__())
        first = streams[0].arrived()
        os.kill(house.engine_pid(), number)
        streams.append(house.client.submit(request("between", max_tokens=3)))
        rest = await read(streams[0])
        assert 1 + sum(len(one.tokens) for one in [*first, *rest]) == 300
        await whole_answers(house, streams[1:])
        assert house.supervisor.num_restarts >= 1

    run(tmp_path, body)


def test_an_answer_that_ended_before_the_death_is_not_begun_again(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        stream = house.client.submit(request("r", n=3, max_tokens=200))
        await anext(stream)
        stream.abort(1, FinishReason.STOP)
        while 1 in stream._open:
            await anext(stream)
        os.kill(house.engine_pid(), signal.SIGKILL)
        rest = await read(stream)
        assert {one.index for one in rest} == {0, 2}
        assert sorted(one.index for one in rest if one.finish_reason) == [0, 2]

    run(tmp_path, body)


def test_an_engine_that_hangs_is_replaced_and_its_streams_go_on(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        streams = [house.client.submit(request("r", max_tokens=100))]
        await whole_answers(house, streams)
        assert house.supervisor.num_restarts == 1

    run(tmp_path, body, "--hang-after", "20", "--once", str(tmp_path / "hung"))


def test_an_engine_that_is_stopped_while_it_starts_is_replaced(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        os.kill(first := house.engine_pid(), signal.SIGKILL)
        while house.engine_pid() == first:
            await asyncio.sleep(0.001)
        os.kill(house.engine_pid(), signal.SIGSTOP)
        assert not house.supervisor._life.is_up
        await whole_answers(house, [house.client.submit(request("r"))])

    run(tmp_path, body)


def test_starts_that_others_thwart_are_tried_again_for_as_long_as_it_takes(tmp_path: Path) -> None:
    cut = tmp_path / "cut"

    async def body(house: House) -> None:
        stream = house.client.submit(request("r", max_tokens=300))
        await anext(stream)
        cut.touch()
        os.kill(house.engine_pid(), signal.SIGKILL)
        while house.supervisor._num_lives < 2 + 2 * MAX_SHORT_LIVES:
            await asyncio.sleep(0.01)
        cut.unlink()
        rest = await read(stream)
        assert 1 + sum(len(one.tokens) for one in rest) == 300

    run(tmp_path, body, "--fail", "the link is cut", "--fail-while", str(cut), "--exit-code", str(FOREIGN_END))


def test_one_request_that_kills_engines_is_found_and_refused_and_the_others_finish(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        good = [house.client.submit(request(f"g{i}", max_tokens=60)) for i in range(5)]
        await anext(good[0].__aiter__())
        poison = house.client.submit(request("poison", prompt=(5,), max_tokens=60))
        first = good[0].arrived()
        rest = await read(good[0])
        assert 1 + sum(len(one.tokens) for one in [*first, *rest]) == 60
        await whole_answers(house, good[1:])
        (end,) = await read(poison)
        assert end.error_code == "request_crashes_engine"
        await whole_answers(house, [house.client.submit(request("later"))])

    run(tmp_path, body)


def test_an_engine_that_dies_again_and_again_is_given_up_and_streams_end_with_an_error(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        (end,) = await read(house.client.submit(request("r", max_tokens=FOREVER)))
        assert end.error_code == "engine_died"
        assert house.client.hopeless
        assert not house.client.alive
        with pytest.raises(EngineDied, match="died too soon"):
            house.client.submit(request("late"))

    run(tmp_path, body, "--crash-when-ready")


def test_an_engine_that_cannot_be_understood_is_replaced(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        stream = house.client.submit(request("r", max_tokens=300))
        await anext(stream)
        first = stream.arrived()
        bad = house.client.submit(request("bad", prompt=(9,), max_tokens=3))
        bad.close()
        rest = await read(stream)
        assert 1 + sum(len(one.tokens) for one in [*first, *rest]) == 300
        assert house.supervisor.num_restarts == 1

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--fail", "the flag is wrong", "--exit-code", "2"), ConfigurationError),
        (("--fail", "the file is damaged", "--exit-code", "3"), CheckpointError),
        (("--fail", "it broke", "--exit-code", "1"), EngineDied),
        (("--no-such-option",), EngineDied),
    ],
)
def test_an_engine_that_cannot_start_says_why(tmp_path: Path, options: tuple[str, ...], fault: type[Exception]) -> None:
    async def body(house: House) -> None:
        raise AssertionError("started")

    with pytest.raises(fault, match=options[1] if len(options) > 1 else "exited with code 2"):
        run(tmp_path, body, *options)


def test_a_command_that_does_not_exist_is_an_error_at_start(tmp_path: Path) -> None:
    async def main() -> None:
        supervisor = EngineSupervisor(lambda _: ["/no/such/program"], tmp_path, [], lambda text: None)
        with pytest.raises(EngineDied, match="exited with code 1"):
            await supervisor.start()
        await supervisor.close()

    asyncio.run(main())


def test_the_engine_dies_with_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from orcinus.engine.supervisor import EngineSupervisor\n"
        "async def main():\n"
        "    supervisor = EngineSupervisor(lambda _: sys.argv[2:], Path(sys.argv[1]), [], lambda text: None)\n"
        "    await supervisor.start()\n"
        "    print('started', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), *FAKE_ENGINE, "--log", str(log)], stdout=subprocess.PIPE
    )
    with log.open() as engine_log, parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        parent.kill()
        # The pipe's only writer is the engine: it ends when the engine does.
        assert engine_log.read() == ""
