"""`orcinus serve`: takes the port, starts and supervises the engine and the front ends, and leaves in good order."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EACCES, EADDRNOTAVAIL
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from orcinus.engine.channel import Channel
from orcinus.engine.child import ChildProcess, private_directory
from orcinus.engine.messages import (
    Drain,
    EngineDescription,
    EngineDown,
    EngineGone,
    EngineUnreadable,
    EngineUp,
    Failed,
    FrontReady,
    Leave,
    ReportFromFront,
)
from orcinus.engine.supervisor import EngineSupervisor
from orcinus.errors import ConfigurationError, EngineDied
from orcinus.server.front import FrontConfig, Order
from orcinus.server.intake import Limits

_BACKLOG = 1024
# Their number is in the last two digits of every response's id.
MAX_FRONT_ENDS = 256
# A front end that dies sooner after its start than this, so many times in a row, isn't started again.
_STABLE_SECONDS, _MAX_SHORT_LIVES = 30.0, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What a user chooses about the HTTP side.

    Args:
        model: folder of the checkpoint: its tokenizer, chat template and sampling defaults are read here.
        host, port: where to listen; port 0 takes any free one.
        api_keys: one of them is needed for everything but /health and /ready. None are needed on loopback.
        insecure_no_auth: listen beyond loopback without a key all the same.
        served_model_names: what clients may call the model; none means the name of its folder.
        drain_seconds: that running streams may take to finish after SIGTERM.
        drain_delay_seconds: before that, in which new requests are still served, but /ready says no.
        front_ends: HTTP processes.
        max_queue_seconds: a request that would have to wait longer than this is refused with 429.

    Raises:
        ConfigurationError: naming the flag of `orcinus serve`, its value and the bound.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    insecure_no_auth: bool = False
    served_model_names: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    drain_delay_seconds: float = 0.0
    front_ends: int = 1
    max_queue_seconds: float = 5.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 1 <= self.front_ends <= MAX_FRONT_ENDS:
            raise ConfigurationError(
                f"api_server_count is {self.front_ends}; it must be between 1 and {MAX_FRONT_ENDS}"
            )
        for name, seconds in (
            ("max_queue_seconds", self.max_queue_seconds),
            ("drain_seconds", self.drain_seconds),
            ("drain_delay_seconds", self.drain_delay_seconds),
        ):
            if not 0 <= seconds < inf:
                raise ConfigurationError(f"{name} is {seconds}; it must be 0 or more, and finite")
        if not 0 <= self.port < 2**16:
            # The resolver would take the remainder.
            raise ConfigurationError(f"port is {self.port}; it must be between 0 and {2**16 - 1}")
        if not self.host:
            # The resolver would take all addresses.
            raise ConfigurationError("host is empty; give an address, as 127.0.0.1")
        if not all(self.served_model_names):
            raise ConfigurationError("served_model_name is empty; give what clients are to call the model")
        for key in self.api_keys:
            _check_key(key)

    @property
    def model_names(self) -> tuple[str, ...]:
        """At least one name."""
        return self.served_model_names or (self.model.resolve().name,)


def _check_key(key: str) -> None:
    """The complaint doesn't show the key."""
    if not key:
        raise ConfigurationError("api_key is empty; give one that can't be guessed")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(
            "api_key holds a space, a control character or one beyond ASCII, which clients can't send; choose another"
        )


def serve(
    settings: ServeSettings,
    engine_command: Callable[[EngineDescription | None], list[str]],
    *,
    on_progress: Callable[[str], None],
    on_ready: Callable[[EngineDescription, str], None],
) -> None:
    """Serve until SIGTERM or SIGINT. Streams may then finish for `settings.drain_seconds`; a second signal ends them.

    Args:
        engine_command: argv of the engine process, see `EngineSupervisor`.
        on_progress: told what happens, for people.
        on_ready: called once with what the engine serves and the URL, when requests are answered.

    Raises:
        ConfigurationError: the address can't be used, or must not be without a key. Known before the engine starts.
        CheckpointError, EngineDied: the engine can't start, or can't be kept alive.
    """
    with listen(settings) as listener, private_directory() as directory:
        asyncio.run(_House(settings, engine_command, listener, directory, on_progress, on_ready).run())


def listen(settings: ServeSettings) -> socket.socket:
    """The listening socket; connections wait in it until the server is ready.

    Raises:
        ConfigurationError: the address is taken or isn't ours, or open to others without a key.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        exposed = not ipaddress.ip_address(address[0]).is_loopback
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"host {host} is not an address to listen on: {error}; give one of this machine, as 127.0.0.1"
        ) from error
    if exposed and not settings.api_keys and not settings.insecure_no_auth:
        raise ConfigurationError(
            f"host {host} can be reached from other machines; give an --api-key, or say --insecure-no-auth if "
            "everybody may use this server"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _unusable(settings, error) from error
    return listener


def _unusable(settings: ServeSettings, error: OSError) -> ConfigurationError:
    host, port = settings.host, settings.port
    if error.errno == EADDRNOTAVAIL:
        return ConfigurationError(f"host {host} is no address of this machine; give one that is, as 127.0.0.1")
    remedy = "Ports below 1024 are for root; run as root" if error.errno == EACCES else "Stop what uses it"
    return ConfigurationError(
        f"port {port} on {host} can't be used: {error.strerror}. {remedy}, or choose another --port."
    )


class _House:
    """All processes of one server."""

    def __init__(
        self,
        settings: ServeSettings,
        engine_command: Callable[[EngineDescription | None], list[str]],
        listener: socket.socket,
        directory: Path,
        say: Callable[[str], None],
        on_ready: Callable[[EngineDescription, str], None],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._say = say
        self._on_ready = on_ready
        self._fronts = [_FrontEnd(number, settings, listener, directory) for number in range(settings.front_ends)]
        self._gone = asyncio.Event()
        self._engine = EngineSupervisor(engine_command, directory, [self], say)

    async def run(self) -> None:
        """From start to end.

        Raises:
            EngineDied: engine or front ends can't be kept alive.
        """
        with _stop_signals() as stopping:
            guards = [asyncio.create_task(self._keep(front)) for front in self._fronts]
            try:
                await _race(self._start(), stopping.first.wait(), guards=guards)
                await _race(stopping.first.wait(), self._gone.wait(), guards=guards)
                if self._gone.is_set() and isinstance(self._engine.latest, EngineGone):
                    raise EngineDied(self._engine.latest.reason)
                await _cancel(guards)
                await self._drain(stopping)
            finally:
                await _cancel(guards)
                for front in self._fronts:
                    await front.close()
                await self._engine.close()

    # ---- news of the engine, passed on

    def engine_up(self, news: EngineUp) -> None:
        """To every front end."""
        self._pass_on(news)

    def engine_down(self, news: EngineDown) -> None:
        """To every front end."""
        self._pass_on(news)

    def engine_gone(self, news: EngineGone) -> None:
        """To every front end; and it is the end."""
        self._pass_on(news)
        self._gone.set()

    def _pass_on(self, news: EngineUp | EngineDown | EngineGone) -> None:
        for front in self._fronts:
            front.send(news)

    # ---- life

    async def _start(self) -> None:
        description = await self._engine.start()
        for front in self._fronts:
            await front.ready.wait()
        self._on_ready(description, _url(self._listener))

    async def _keep(self, front: _FrontEnd) -> None:
        """Keep one front end alive.

        Raises:
            EngineDied: it dies again and again.
        """
        short_lives = 0
        while short_lives < _MAX_SHORT_LIVES:
            started_at = asyncio.get_running_loop().time()
            front.start()
            front.send(self._engine.latest)
            reason = await front.live(self._engine.replace_engine)
            if not front.ready.is_set() and front.failure is not None:
                # What it can't read now it won't read the next time.
                raise front.failure.fault()
            self._engine.front_gone(front.identity)
            lived = asyncio.get_running_loop().time() - started_at
            short_lives = 0 if lived > _STABLE_SECONDS else short_lives + 1
            self._say(f"a front end {reason}; starting another")
        raise EngineDied(f"{short_lives} front ends in a row died too soon; the last one {reason}")

    async def _drain(self, stopping: _StopSignals) -> None:
        """Nothing new is accepted; what runs may finish, unless a second signal comes."""
        self._listener.close()
        for front in self._fronts:
            front.send(Drain())
        await _race(self._all_exited(), stopping.second.wait())

    async def _all_exited(self) -> None:
        for front in self._fronts:
            await front.exited()


class _FrontEnd:
    """One HTTP process after the other, at the same place."""

    def __init__(self, number: int, settings: ServeSettings, listener: socket.socket, directory: Path) -> None:
        self._number = number
        self._directory = directory
        self._settings = settings
        self._listener = listener
        self._lives = 0
        self._process: ChildProcess | None = None
        self._channel: Channel[Order, ReportFromFront] | None = None
        self.ready = asyncio.Event()
        self.failure: Failed | None = None

    @property
    def identity(self) -> bytes:
        """Of the process of the moment."""
        return f"front-{self._number}-{self._lives}".encode()

    def start(self) -> None:
        """Start a process and tell it what to serve."""
        settings = self._settings
        self._lives += 1
        command = [sys.executable, "-m", "orcinus.server.front"]
        self._process = ChildProcess(command, (self._listener.fileno(),))
        self._channel = Channel(self._process.end, msgspec.msgpack.Decoder(ReportFromFront))
        self.send(
            FrontConfig(
                identity=self.identity,
                number=self._number,
                directory=str(self._directory),
                listener=self._listener.fileno(),
                host=settings.host,
                model=str(settings.model),
                served_model_names=settings.model_names,
                api_keys=settings.api_keys,
                drain_seconds=settings.drain_seconds,
                drain_delay_seconds=settings.drain_delay_seconds,
                num_fronts=settings.front_ends,
                max_queue_seconds=settings.max_queue_seconds,
                limits=settings.limits,
            )
        )

    def send(self, order: Order) -> None:
        """An order, if there is a process to take it."""
        if self._channel is not None:
            self._channel.send(order)

    async def live(self, replace_engine: Callable[[], None]) -> str:
        """Follow its reports until it ends; how it ended."""
        assert self._process is not None
        assert self._channel is not None
        while True:
            try:
                report = await self._channel.receive()
            except (EOFError, OSError):
                await self._process.exited.wait()
                return self._process.exit_reason()
            match report:
                case FrontReady():
                    self.ready.set()
                case EngineUnreadable():
                    replace_engine()
                case Failed():
                    self.failure = report

    async def exited(self) -> None:
        """Wait for the end of the process."""
        if self._process is not None:
            await self._process.exited.wait()

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self.send(Leave())
            await self._process.leave()


async def _race(*works: Coroutine[object, object, object], guards: Sequence[asyncio.Task[None]] = ()) -> None:
    """Wait for the first; what else was started here is cancelled. The error of whatever ended is raised."""
    own = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait({*own, *guards}, return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
    finally:
        await _cancel(own)


async def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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
