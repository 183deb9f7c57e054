"""The HTTP process: takes the port, starts the engine, serves, and leaves in good order."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import uvicorn
import uvloop

from orcinus.engine.client import SHUTTING_DOWN, EngineClient
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.door import Door
from orcinus.engine.messages import EngineDescription
from orcinus.errors import ConfigurationError
from orcinus.server.app import Limits, ServerContext, create_app
from orcinus.server.gate import ApiKeys
from orcinus.text.chat import ChatTemplate
from orcinus.text.generation import GenerationDefaults
from orcinus.text.tokenizer import Tokenizer

_BACKLOG = 1024
_KEEP_ALIVE_SECONDS = 60
# After the last streams have been told to end, this long until their connections are cut.
_CUT_AFTER_SECONDS = 5

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What a user chooses about the HTTP side.

    Args:
        model: folder of the checkpoint: its tokenizer, chat template and sampling defaults are read here.
        host, port: where to listen; port 0 takes any free one.
        api_keys: one of them is needed for everything but /health. None are needed on loopback.
        insecure_no_auth: listen beyond loopback without a key all the same.
        served_model_names: what clients may call the model; none means the name of its folder.
        drain: seconds that running streams may take to finish after SIGTERM.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    insecure_no_auth: bool = False
    served_model_names: tuple[str, ...] = ()
    drain: float = 30.0
    limits: Limits = field(default_factory=Limits)

    @property
    def model_names(self) -> tuple[str, ...]:
        """At least one name."""
        return self.served_model_names or (self.model.resolve().name,)


def serve(
    settings: ServeSettings,
    engine_command: list[str],
    *,
    on_progress: Callable[[str], None],
    on_ready: Callable[[EngineDescription, str], None],
) -> None:
    """Serve until SIGTERM or SIGINT. Running streams then finish within `settings.drain`; a second signal ends them.

    Args:
        engine_command: argv of the engine process, but for its socket.
        on_progress: told what happens until the server is ready.
        on_ready: called once with what the engine serves and the URL, when requests are answered.

    Raises:
        ConfigurationError: the address can't be used, or must not be without a key. Known before the engine starts.
        CheckpointError, EngineDied: the engine can't start.
    """
    with listen(settings) as listener:
        uvloop.run(_serve(settings, listener, engine_command, on_progress, on_ready))


def listen(settings: ServeSettings) -> socket.socket:
    """The listening socket; connections wait in it until the server is ready.

    Raises:
        ConfigurationError: the address is taken or isn't ours, or open to others without a key.
    """
    host, port = settings.host, settings.port
    if not all(settings.api_keys):
        raise ConfigurationError("an API key is empty; give one that can't be guessed")
    if not 0 <= port < 2**16:
        # The resolver would take the remainder.
        raise ConfigurationError(f"port is {port}; it must be between 0 and {2**16 - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        exposed = not ipaddress.ip_address(address[0]).is_loopback
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{host}:{port} is not an address to listen on: {error}") from error
    if exposed and not settings.api_keys and not settings.insecure_no_auth:
        raise ConfigurationError(
            f"{host} can be reached from other machines; give an --api-key, or say --insecure-no-auth if everybody "
            "may use this server"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"port {port} on {host} can't be used: {error.strerror}. Stop what uses it, or choose another --port."
        ) from error
    return listener


async def _serve(
    settings: ServeSettings,
    listener: socket.socket,
    engine_command: list[str],
    on_progress: Callable[[str], None],
    on_ready: Callable[[EngineDescription, str], None],
) -> None:
    client = EngineClient(None, engine_command)
    with _stop_signals() as stopping:
        try:
            context = await _unless(stopping.first, _start(settings, client, on_progress))
            if context is not None:
                server = _server(context, settings.drain)
                on_ready(context.door.engine, _url(listener))
                await _serve_until(stopping, server, listener, client, settings.drain)
        finally:
            await client.close()


async def _start(settings: ServeSettings, client: EngineClient, on_progress: Callable[[str], None]) -> ServerContext:
    """The engine loads its weights while the text side is read here."""
    description, (tokenizer, template, defaults) = await asyncio.gather(
        client.start(on_progress), asyncio.to_thread(_read_text_side, settings.model)
    )
    return ServerContext(
        client=client,
        door=Door(description, random.SystemRandom()),
        clock=MonotonicClock(),
        tokenizer=tokenizer,
        chat_template=template,
        served_model_names=settings.model_names,
        api_keys=ApiKeys(settings.api_keys),
        defaults=defaults,
        limits=settings.limits,
    )


def _read_text_side(model: Path) -> tuple[Tokenizer | None, ChatTemplate | None, GenerationDefaults]:
    tokenizer = Tokenizer.load(model)
    return tokenizer, ChatTemplate.of(tokenizer), GenerationDefaults.load(model)


def _server(context: ServerContext, drain: float) -> _Server:
    return _Server(
        uvicorn.Config(
            create_app(context),
            http="httptools",
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
    """uvicorn, but for signals: ours count from before the engine starts until it has gone."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave them alone."""
        return nullcontext()


async def _serve_until(
    stopping: _StopSignals, server: _Server, listener: socket.socket, client: EngineClient, drain: float
) -> None:
    """Serve; after the first signal accept nothing more, after the second (or `drain` seconds) end the streams."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await _unless(stopping.first, _finished(serving))
    server.should_exit = True
    await _unless(stopping.second, asyncio.wait({serving}, timeout=drain))
    client.end_streams(SHUTTING_DOWN, "the server is shutting down")
    await serving


async def _finished(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})


async def _unless(event: asyncio.Event, work: Coroutine[object, object, Result]) -> Result | None:
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


@dataclass(frozen=True, slots=True)
class _StopSignals:
    """The first asks to leave, the second to hurry."""

    first: asyncio.Event = field(default_factory=asyncio.Event)
    second: asyncio.Event = field(default_factory=asyncio.Event)

    def arrive(self) -> None:
        """One more signal."""
        (self.second if self.first.is_set() else self.first).set()


@contextmanager
def _stop_signals() -> Iterator[_StopSignals]:
    loop = asyncio.get_running_loop()
    stopping = _StopSignals()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stopping.arrive)
    try:
        yield stopping
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
