"""The open loop: requests leave at their instants, whatever has become of those before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Self

from orcinus.bench.asks import Ask, Observation

# Often enough for a p99 of short runs, and nothing to the CPU.
_BEAT_SECONDS = 0.010
Send = Callable[[Ask, Observation], Awaitable[None]]


class Heartbeat:
    """Wakes up all the time while its block runs, and notes how late: a client that stalls sees tokens late as well."""

    def __init__(self) -> None:
        self.stalls: list[float] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            due = time.perf_counter() + _BEAT_SECONDS
            await asyncio.sleep(_BEAT_SECONDS)
            self.stalls.append(max(0.0, time.perf_counter() - due))


async def open_loop(
    asks: Sequence[Ask],
    arrivals: Sequence[float],
    send: Send,
    *,
    max_concurrency: int | None = None,
    on_end: Callable[[Observation], None],
) -> list[Observation]:
    """Send each ask at its arrival; return when all have ended.

    Args:
        arrivals: seconds from now, ascending, one an ask.
        send: one request; it fills in the observation and doesn't raise for a failed one.
        max_concurrency: holds released requests back while so many are out; None keeps the loop open.
        on_end: called as each request ends.
    """
    gate: AbstractAsyncContextManager[object] = (
        nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
    )

    async def one(ask: Ask, observation: Observation) -> None:
        observation.released_at = time.perf_counter()
        async with gate:
            await send(ask, observation)
        on_end(observation)

    observations = []
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for ask, arrival in zip(asks, arrivals, strict=True):
            observation = Observation(scheduled_at=begun + arrival, released_at=0.0)
            observations.append(observation)
            if (wait := observation.scheduled_at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(one(ask, observation))
    return observations
