"""A front end: one HTTP process. Started by `server.run`, which hands it the listening socket and the engine's news."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import uvicorn
import uvloop

from orcinus.engine.channel import Channel
from orcinus.engine.client import SHUTTING_DOWN, EngineClient
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.door import Door
from orcinus.engine.messages import (
    Drain,
    EngineDown,
    EngineGone,
    EngineUnreadable,
    EngineUp,
    Failed,
    FrontReady,
    Leave,
    ReportFromFront,
    exit_code_of,
)
from orcinus.engine.supervisor import tell
from orcinus.errors import SystemFault
from orcinus.server.app import create_app
from orcinus.server.explanations import Explainer
from orcinus.server.gate import ApiKeys, Listener
from orcinus.server.intake import Limits, ServerContext
from orcinus.server.neighbours import Neighbours
from orcinus.server.streams import StreamStore
from orcinus.server.text_workers import TextWorkers
from orcinus.server.wire import Wire
from orcinus.text.generation import GenerationDefaults
from orcinus.text.jobs import TextSide

_KEEP_ALIVE_SECONDS = 60
_MORE_ACCEPTS = 15
# After the last streams have been told to end, this long until their connections are cut.
_CUT_AFTER_SECONDS = 5

Result = TypeVar("Result")


class FrontConfig(msgspec.Struct, frozen=True, tag="front_config"):
    """The first order: what to serve and where. Not in argv, where everybody could read the keys.

    Args:
        identity: tells this process from the other front ends, and from the one before it.
        number: its place among the front ends.
        directory: a private one, for sockets.
        listener: number of the inherited listening socket.
        host: what its address is called.
        model: folder of the checkpoint: tokenizer, chat template and sampling defaults are read there.
        drain_seconds: that running streams may take to finish once the server is to leave.
        drain_delay_seconds: before that, see `ServeSettings`.
        max_queue_seconds: see `ServeSettings`.
    """

    identity: bytes
    number: int
    directory: str
    listener: int
    host: str
    model: str
    served_model_names: tuple[str, ...]
    api_keys: tuple[str, ...]
    drain_seconds: float
    drain_delay_seconds: float
    num_fronts: int
    max_queue_seconds: float
    limits: Limits


Order = FrontConfig | EngineUp | EngineDown | EngineGone | Drain | Leave
Control = Channel[ReportFromFront, Order]


@dataclass(frozen=True, slots=True)
class Stopping:
    """Two steps: leave when all is finished, and leave now."""

    drain: asyncio.Event = field(default_factory=asyncio.Event)
    leave: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> None:
        """Both."""
        self.drain.set()
        self.leave.set()


def main(arguments: list[str]) -> int:
    """`--control FD`: serve until told to leave, or until the supervisor is gone."""
    control: Control = Channel.inherited(int(arguments[1]), msgspec.msgpack.Decoder(Order))
    try:
        uvloop.run(_run(control))
    except SystemFault as fault:
        control.send(Failed(str(fault), exit_code_of(fault)))
        return 1
    return 0


async def _run(control: Control) -> None:
    config = await control.receive()
    assert isinstance(config, FrontConfig)
    stopping = Stopping()
    client = EngineClient(
        config.identity,
        lambda: _report(control, EngineUnreadable()),
        num_fronts=config.num_fronts,
        max_wait=config.max_queue_seconds,
    )
    listening = asyncio.create_task(_take_orders(control, client, stopping))
    context = None
    try:
        context = await unless(stopping.drain, _context(config, client))
        if context is not None:
            server = _server(context, config.drain_seconds)
            if context.neighbours is not None:
                await context.neighbours.serve()
            with socket.socket(fileno=config.listener) as listener:
                _report(control, FrontReady())
                await _serve_until(stopping, server, listener, client, config)
    finally:
        listening.cancel()
        if context is not None:
            await context.text_workers.close()
        await client.close()


def _report(control: Control, report: ReportFromFront) -> None:
    control.send(report)


async def _take_orders(control: Control, client: EngineClient, stopping: Stopping) -> None:
    """For as long as there is a supervisor; without one nobody would restart anything, so leave."""
    while True:
        try:
            order = await control.receive()
        except (EOFError, OSError):
            stopping.now()
            return
        match order:
            case Drain():
                stopping.drain.set()
            case Leave():
                stopping.now()
            case EngineUp() | EngineDown() | EngineGone():
                tell(client, order)


async def _context(config: FrontConfig, client: EngineClient) -> ServerContext:
    """The engine loads its weights while the text side is read here."""
    text, description = await asyncio.gather(_text_side(Path(config.model)), client.ready())
    streams, clock = StreamStore(), MonotonicClock()
    explainer = Explainer(client, clock)
    neighbours = Neighbours(Path(config.directory), config.number, streams, explainer)
    return ServerContext(
        client=client,
        door=Door(description, random.SystemRandom()),
        clock=clock,
        tokenizer=text.side.tokenizer,
        chat_template=text.side.template,
        text_workers=text.workers,
        explainer=explainer,
        listener=Listener(_address_of(config.listener), config.host),
        served_model_names=config.served_model_names,
        api_keys=ApiKeys(config.api_keys),
        defaults=text.defaults,
        limits=config.limits,
        streams=streams,
        front_number=config.number,
        neighbours=neighbours if config.num_fronts > 1 else None,
    )


def _address_of(listener: int) -> str:
    with socket.socket(fileno=os.dup(listener)) as copy:
        address: str = copy.getsockname()[0]
    return address


class _Text(NamedTuple):
    """What a checkpoint brings for text, and the processes that read what is long."""

    side: TextSide
    workers: TextWorkers
    defaults: GenerationDefaults


async def _text_side(model: Path) -> _Text:
    side, defaults = await asyncio.to_thread(lambda: (TextSide.load(model), GenerationDefaults.load(model)))
    workers = TextWorkers(model, side)
    workers.warm_up()
    return _Text(side, workers, defaults)


def _server(context: ServerContext, drain: float) -> _Server:
    return _Server(
        uvicorn.Config(
            create_app(context),
            http=Wire,
            ws="none",
            lifespan="off",
            # Rooms don't configure logging; and a line for every request costs more than it tells.
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(drain) + _CUT_AFTER_SECONDS,
        )
    )


class _Server(uvicorn.Server):
    """uvicorn, but for signals: the supervisor says when to leave."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave them alone."""
        return nullcontext()


async def _serve_until(
    stopping: Stopping, server: _Server, listener: socket.socket, client: EngineClient, config: FrontConfig
) -> None:
    """Serve; once draining say so, then accept nothing more; after a while, or at once if so told, end the streams."""
    # The event loop takes one connection a turn from each; a crowd must not wait for as many turns.
    sockets = [listener, *(listener.dup() for _ in range(_MORE_ACCEPTS))]
    serving = asyncio.create_task(server.serve(sockets=sockets))
    await unless(stopping.drain, _finished(serving))
    client.is_leaving = True
    await unless(stopping.leave, asyncio.wait({serving}, timeout=config.drain_delay_seconds))
    server.should_exit = True
    # Whoever looks on would do so for good.
    client.unwatch()
    await unless(stopping.leave, asyncio.wait({serving}, timeout=config.drain_seconds))
    client.end_streams(SHUTTING_DOWN, "the server is shutting down")
    await serving


async def _finished(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})


async def unless(event: asyncio.Event, work: Coroutine[object, object, Result]) -> Result | None:
    """The result of `work`, or None if the event came first and cancelled it."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
