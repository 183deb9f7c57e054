"""The engine client against a fake engine in a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, SamplingParams, pack_tokens
from orcinus.engine.client import EngineClient, Stream
from orcinus.errors import CheckpointError, ConfigurationError, EngineDied

pytestmark = pytest.mark.slow
FAKE_ENGINE = [sys.executable, str(Path(__file__).parent / "fake_engine.py")]
FOREVER = 10**9


def request(request_id: str, *, n: int = 1, max_tokens: int = 4, prompt: tuple[int, ...] = (10, 11, 12)) -> Request:
    params = SamplingParams(n=n, max_tokens=max_tokens, seed=0)
    return Request(request_id=request_id, prompt=pack_tokens(prompt), params=params)


async def read(stream: Stream) -> list[Progress]:
    return [progress async for progress in stream]


def run(tmp_path: Path, body: Callable[[EngineClient], Awaitable[None]], *options: str) -> None:
    """`body` with a started client, under a time limit; afterwards nothing may be left behind."""

    async def main() -> None:
        client = EngineClient(tmp_path, [*FAKE_ENGINE, *options])
        try:
            await client.start(lambda text: None)
            await asyncio.wait_for(body(client), 60)
        finally:
            await client.close()
        assert list(tmp_path.glob("orcinus-*")) == []
        assert client.num_live == 0

    asyncio.run(main())


def test_requests_get_their_own_progress_in_order_and_each_answer_ends_once(tmp_path: Path) -> None:
    async def body(client: EngineClient) -> None:
        streams = [client.submit(request(f"r{i}", n=1 + i % 3, prompt=(20 + i, 30 + i))) for i in range(8)]
        assert client.num_live == 8
        for i, progress in enumerate(await asyncio.gather(*map(read, streams))):
            for index in range(1 + i % 3):
                own = [one for one in progress if one.index == index]
                assert [token for one in own for token in one.tokens] == [20 + i, 30 + i] * 2
                assert [one.finish_reason for one in own] == [None, None, None, FinishReason.LENGTH]
        assert client.num_live == 0
        assert client.stats is not None
        assert (client.stats.num_running, client.stats.progress) == (0, ())

    run(tmp_path, body)


def test_the_socket_lies_in_a_private_directory(tmp_path: Path) -> None:
    async def body(client: EngineClient) -> None:
        (directory,) = tmp_path.glob("orcinus-*")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    run(tmp_path, body)


def test_leaving_a_stream_aborts_it_in_the_engine(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)

    async def body(client: EngineClient) -> None:
        lines = await asyncio.to_thread(log.open)
        with client.submit(request("left", max_tokens=FOREVER)) as stream:
            await anext(stream)
        assert (await asyncio.to_thread(lines.readline)).startswith("add left")
        assert await asyncio.to_thread(lines.readline) == "abort left None abort\n"
        with client.submit(request("whole")) as stream:
            await read(stream)
        await client.close()
        assert [line.split()[0] for line in lines] == ["add", "shutdown"]
        lines.close()

    async def open_both(client: EngineClient) -> None:
        await body(client)

    # The engine opens the pipe before it describes itself, so the reader must be there first.
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        run(tmp_path, open_both, "--log", str(log))
    finally:
        os.close(reader)


def test_an_abort_by_stop_string_ends_one_answer_with_stop(tmp_path: Path) -> None:
    async def body(client: EngineClient) -> None:
        stream = client.submit(request("r", n=2, max_tokens=FOREVER))
        await anext(stream)
        stream.abort(1, FinishReason.STOP)
        async for progress in stream:
            if progress.finish_reason is not None:
                break
        assert (progress.index, progress.finish_reason) == (1, FinishReason.STOP)
        stream.abort()
        assert [one.finish_reason for one in await read(stream) if one.finish_reason] == [FinishReason.ABORT]

    run(tmp_path, body)


@pytest.mark.parametrize("how", ["crash", "kill"])
def test_when_the_engine_dies_every_open_answer_ends_once_with_an_error(tmp_path: Path, how: str) -> None:
    async def body(client: EngineClient) -> None:
        streams = [client.submit(request(f"r{i}", n=2, max_tokens=FOREVER)) for i in range(4)]
        if how == "kill":
            await anext(streams[0])
            assert client._process is not None
            os.kill(client._process.pid, signal.SIGKILL)
        for progress in await asyncio.gather(*map(read, streams)):
            ended = [one for one in progress if one.finish_reason is not None]
            assert [(one.index, one.finish_reason) for one in ended] == [(i, FinishReason.ERROR) for i in (0, 1)]
            assert {one.error_code for one in ended} == {"engine_died"}
        assert not client.alive
        with pytest.raises(EngineDied, match="code 9" if how == "crash" else "SIGKILL"):
            client.submit(request("late"))

    run(tmp_path, body, *(("--crash-after", "5") if how == "crash" else ()))


def test_an_engine_that_cannot_be_understood_is_ended(tmp_path: Path) -> None:
    async def body(client: EngineClient) -> None:
        streams = [client.submit(request("r", max_tokens=FOREVER)), client.submit(request("bad", prompt=(9,)))]
        for progress in await asyncio.gather(*map(read, streams)):
            assert progress[-1].error_code == "engine_died"

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
    async def body(client: EngineClient) -> None:
        raise AssertionError("started")

    with pytest.raises(fault, match=options[1] if len(options) > 1 else "exited with code 2"):
        run(tmp_path, body, *options)


def test_a_command_that_does_not_exist_is_an_error_at_start(tmp_path: Path) -> None:
    async def main() -> None:
        client = EngineClient(tmp_path, ["/no/such/program"])
        with pytest.raises(EngineDied, match="exited with code 1"):
            await client.start(lambda text: None)
        await client.close()

    asyncio.run(main())


def test_the_engine_dies_with_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from orcinus.engine.client import EngineClient\n"
        "async def main():\n"
        "    client = EngineClient(Path(sys.argv[1]), sys.argv[2:])\n"
        "    await client.start(lambda text: None)\n"
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
