"""Text that takes too long or too much memory costs its own request, and nobody else anything (RELIABILITY.md, S11)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from tokenizer_files import write_tokenizer

from orcinus.errors import Overloaded, RequestFailed
from orcinus.server import text_workers
from orcinus.server.text_workers import TextWorkers
from orcinus.text.jobs import DecodeTokens, EncodeConversation, EncodeTexts, Job, Outcome, Refused, TextSide, TokenLists
from orcinus.text.worker import TOO_EXPENSIVE

pytestmark = pytest.mark.slow
Result = TypeVar("Result")

# A template is a program: what it does depends on what it is told.
TEMPLATE = """{% set mode = messages[0].content %}
{%- if mode == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{%- if mode == 'memory' %}{% set ns = namespace(x='x' * 1000000) %}
{%- for i in range(12) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{% endif %}
{%- for message in messages %}{{ message.content }}{% endfor %}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder, chat_template=TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def side(model: Path) -> TextSide:
    loaded = TextSide.load(model)
    assert loaded is not None
    return loaded


def say(content: str) -> EncodeConversation:
    return EncodeConversation([{"role": "user", "content": content}], True, False, {}, False)


def with_workers(
    model: Path, side: TextSide, use: Callable[[TextWorkers], Awaitable[Result]], num_workers: int = 2
) -> Result:
    async def run() -> Result:
        workers = TextWorkers(model, side, num_workers)
        try:
            return await use(workers)
        finally:
            await workers.close()

    return asyncio.run(run())


def do(model: Path, side: TextSide, *jobs: Job) -> list[Outcome]:
    async def use(workers: TextWorkers) -> list[Outcome]:
        return [await workers.do(job, 10**6, "") for job in jobs]

    return with_workers(model, side, use)


@pytest.mark.parametrize(
    "job",
    [
        EncodeTexts(["one two three", "", "a" * 100_000], True),
        say("one two"),
        DecodeTokens(b"\1\0\0\0\2\0\0\0"),
    ],
    ids=lambda job: type(job).__name__,
)
def test_a_worker_reads_as_the_front_end_does(model: Path, side: TextSide, job: Job) -> None:
    assert do(model, side, job) == [side.do(job)]


@pytest.mark.parametrize("bomb", ["loop", "memory"])
def test_a_bomb_is_refused_and_the_next_text_is_read(model: Path, side: TextSide, bomb: str) -> None:
    refused, read = do(model, side, say(bomb), say("one two"))
    assert isinstance(refused, Refused)
    assert refused.code == TOO_EXPENSIVE
    assert read == side.do(say("one two"))


def test_others_are_read_while_a_bomb_burns(model: Path, side: TextSide) -> None:
    async def use(workers: TextWorkers) -> list[str]:
        order: list[str] = []

        async def one(name: str, job: Job, owner: str) -> None:
            await workers.do(job, 10**6, owner)
            order.append(name)

        bombs = [asyncio.create_task(one("bomb", say("loop"), "hostile")) for _ in range(2)]
        await asyncio.sleep(0)
        polite = [asyncio.create_task(one("polite", say("one"), "polite")) for _ in range(5)]
        await asyncio.gather(*bombs, *polite)
        return order

    order = with_workers(model, side, use)
    assert order == ["polite"] * 5 + ["bomb"] * 2


def test_a_worker_that_somebody_kills_costs_nothing(model: Path, side: TextSide) -> None:
    async def use(workers: TextWorkers) -> Outcome:
        await workers.do(say("one"), 10**6, "")
        os.kill(_children()[0], signal.SIGKILL)
        return await workers.do(say("one two"), 10**6, "")

    assert with_workers(model, side, use, num_workers=1) == side.do(say("one two"))


def test_a_worker_that_stands_still_is_replaced(model: Path, side: TextSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_workers, "MAX_SECONDS", 0.5)

    async def use(workers: TextWorkers) -> list[Outcome]:
        await workers.do(say("one"), 10**6, "")
        os.kill(_children()[0], signal.SIGSTOP)
        return [await workers.do(say("one"), 10**6, ""), await workers.do(say("one two"), 10**6, "")]

    late, read = with_workers(model, side, use, num_workers=1)
    assert isinstance(late, Refused)
    assert read == side.do(say("one two"))


def test_a_checkpoint_that_no_worker_can_read_fails_the_request(
    tmp_path: Path, side: TextSide, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestFailed):
        do(tmp_path, side, say("one"))
    assert "needs a tokenizer" in capfd.readouterr().err


def test_no_process_is_left(model: Path, side: TextSide) -> None:
    do(model, side, say("one"))
    assert _children() == []


def test_short_texts_need_no_process(model: Path, side: TextSide) -> None:
    async def use(workers: TextWorkers) -> Outcome:
        outcome = await workers.do(EncodeTexts(["one"], True), 3, "")
        assert _children() == []
        return outcome

    assert isinstance(with_workers(model, side, use), TokenLists)


def test_more_than_can_wait_is_refused(model: Path, side: TextSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_workers, "MAX_JOBS", 2)

    async def use(workers: TextWorkers) -> list[object]:
        tasks = [asyncio.create_task(workers.do(say("one"), 10**6, "")) for _ in range(4)]
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    outcomes = with_workers(model, side, use)
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, TokenLists) for outcome in outcomes) == 2


def _children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in children if b"orcinus.text.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
