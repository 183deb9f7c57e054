"""What does a plan on its way to another host cost, by the channel that carries it?

    python benchmarks/control_channel.py --repeats 3      (needs root, iproute2 and the package grpcio)

Two network namespaces joined by a virtual cable. One side sends the plans of a steady decode batch, as core makes them
and the engine packs them, one every few milliseconds as between iterations; the other answers each with a result.
Candidates are written in the same style, a call that sends and a call that waits: plain TCP with our frames, the same
under TLS with both sides' certificates proven (what is used), ZMQ with CURVE keys, and gRPC with mutual TLS, a stream
of bytes each way. Microseconds: wall until the plan is in the other side's hands (they share a clock) and until the
answer is back, and processor time an iteration of either process with its library's threads.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import grpc
import msgspec
import zmq
from null_executor import answer, full_core

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from namespaces import Host, hosts

from orcinus.core.core import Submit
from orcinus.executor.frames import Frames
from orcinus.executor.messages import Done
from orcinus.parallel.credentials import Credentials, issue, name_of

PORT = 7000
PAUSE_SECONDS = 0.002
WARM_UP = 50
CANDIDATES = ("tcp", "tls", "zmq", "grpc")
BATCHES = (16, 64)
METHOD = "/orcinus.Control/Plans"


class Papers(msgspec.Struct):
    """What a side proves itself with: certificates, or for ZMQ the keys of the side that listens."""

    own: Credentials
    curve_public: bytes
    curve_secret: bytes


class Channel(Protocol):
    """One side of a candidate."""

    def send(self, frame: bytes) -> None:
        """Hand it over."""
        ...

    def receive(self) -> bytes | None:
        """Wait for the next; None at the end."""
        ...


class Streamed:
    """Our frames."""

    def __init__(self, end: socket.socket) -> None:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frames = Frames(end)
        self.send, self.receive = frames.send, frames.receive


class Zmq:
    """A pair of sockets."""

    def __init__(self, where: zmq.Socket[bytes]) -> None:
        self.send, self.receive = where.send, where.recv


class Grpc:
    """Both directions of a stream, as queues."""

    def __init__(self, incoming: Iterator[bytes], outgoing: queue.SimpleQueue[bytes]) -> None:
        self._incoming = incoming
        self.send = outgoing.put

    def receive(self) -> bytes | None:
        try:
            return next(self._incoming, None)
        except grpc.RpcError:
            return None


def dialed(kind: str, address: str, papers: Papers) -> Channel:
    """The side of the engine."""
    if kind == "zmq":
        where = zmq.Context().socket(zmq.PAIR)
        where.curve_serverkey = papers.curve_public
        where.curve_publickey, where.curve_secretkey = zmq.curve_keypair()
        where.connect(f"tcp://{address}:{PORT}")
        return Zmq(where)
    if kind == "grpc":
        own = papers.own
        proof = grpc.ssl_channel_credentials(own.authority.encode(), own.key.encode(), own.certificate.encode())
        options = [("grpc.ssl_target_name_override", name_of(1))]
        plans: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        call = grpc.secure_channel(f"{address}:{PORT}", proof, options).stream_stream(METHOD)
        return Grpc(call(iter(plans.get, None), wait_for_ready=True), plans)
    end = socket.create_connection((address, PORT))
    return Streamed(papers.own.to_dial().wrap_socket(end, server_hostname=name_of(1)) if kind == "tls" else end)


def serve(kind: str, address: str, papers: Papers) -> None:
    """The side of a worker, until the other has gone: answers with its results, then says when each plan was here."""
    if kind == "grpc":
        own = papers.own
        proof = grpc.ssl_server_credentials(
            [(own.key.encode(), own.certificate.encode())], own.authority.encode(), require_client_auth=True
        )
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.stream_stream_rpc_method_handler(over_grpc)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("orcinus.Control", {"Plans": handler}),))
        server.add_secure_port(f"{address}:{PORT}", proof)
        server.start()
        print("ready", flush=True)
        # The other side's next word comes after this run.
        sys.stdin.buffer.readline()
        server.stop(0).wait()
        return
    if kind == "zmq":
        where = zmq.Context().socket(zmq.PAIR)
        where.curve_server, where.curve_secretkey = True, papers.curve_secret
        where.bind(f"tcp://{address}:{PORT}")
        print("ready", flush=True)
        answer_all(Zmq(where))
        sys.stdin.buffer.readline()
        where.close(linger=0)
        return
    with socket.create_server((address, PORT)) as server:
        print("ready", flush=True)
        end, _ = server.accept()
        with papers.own.to_listen().wrap_socket(end, server_side=True) if kind == "tls" else end as end:
            answer_all(Streamed(end))
            sys.stdin.buffer.readline()


def over_grpc(plans: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    """gRPC's own way to write it: what is yielded is sent."""
    yield from answers(Grpc(plans, queue.SimpleQueue()))


def answer_all(channel: Channel) -> None:
    """A result for each plan."""
    for said in answers(channel):
        channel.send(said)


def answers(channel: Channel) -> Iterator[bytes]:
    """The first frame is the result to answer with, an empty one asks for the account."""
    result = channel.receive()
    assert result is not None
    arrived: list[float] = []
    yield b"ok"
    while channel.receive():
        arrived.append(time.monotonic())
        if len(arrived) == WARM_UP:
            before = time.process_time()
        yield result
    yield json.dumps({"arrived": arrived[WARM_UP:], "cpu": time.process_time() - before}).encode()


def frames_of(batch: int) -> tuple[bytes, bytes]:
    """A plan of the steady state and its result, packed."""
    core = full_core(batch, 64, 0)
    for _ in range(8):
        decision = core.advance(0.0)
        assert isinstance(decision, Submit)
        result = answer(decision.plan)
        core.update(result, 0.0)
    assert len(decision.plan.work) == batch == decision.plan.num_tokens
    return msgspec.msgpack.encode(decision.plan), msgspec.msgpack.encode(Done(result))


def ask(kind: str, address: str, papers: Papers, batch: int, iterations: int) -> dict[str, float]:
    """Medians of one run, in microseconds."""
    plan, result = frames_of(batch)
    channel = dialed(kind, address, papers)
    channel.send(result)
    assert channel.receive() == b"ok"
    sent, back = [], []
    for number in range(iterations + WARM_UP):
        if number == WARM_UP:
            before = time.process_time()
        time.sleep(PAUSE_SECONDS)
        sent.append(time.monotonic())
        channel.send(plan)
        assert channel.receive() == result
        back.append(time.monotonic())
    cpu = time.process_time() - before
    channel.send(b"")
    account = json.loads(channel.receive() or b"{}")
    sent, back = sent[WARM_UP:], back[WARM_UP:]
    return {
        "bytes": len(plan),
        "one_way": 1e6 * statistics.median(b - a for a, b in zip(sent, account["arrived"], strict=True)),
        "round_trip": 1e6 * statistics.median(b - a for a, b in zip(sent, back, strict=True)),
        "cpu_sender": 1e6 * cpu / iterations,
        "cpu_receiver": 1e6 * account["cpu"] / iterations,
    }


class Side:
    """A process in its namespace, told what to do by its input, as long as the comparison lasts."""

    def __init__(self, host: Host, address: str, papers: Papers, *options: str) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--address", address, *options]
        self.process = subprocess.Popen(host.command(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.tell(msgspec.json.encode(papers))

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def hear(self) -> bytes:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "a side has gone"
        return line


def compare(repeats: int, iterations: int) -> None:
    """All candidates by turns, and the medians of all turns."""
    members, curve = issue([0, 1]), zmq.curve_keypair()
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    with hosts(2) as (here, there):
        worker = Side(there, there.address, Papers(members[1], *curve), "--serve")
        engine = Side(here, there.address, Papers(members[0], *curve))
        try:
            for turn in range(repeats * len(BATCHES) * len(CANDIDATES)):
                kind, batch = CANDIDATES[turn % 4], BATCHES[turn // 4 % 2]
                job = json.dumps({"kind": kind, "batch": batch, "iterations": iterations}).encode()
                worker.tell(job)
                assert worker.hear() == b"ready\n"
                engine.tell(job)
                found.setdefault((batch, kind), []).append(json.loads(engine.hear()))
                worker.tell(b"")
        finally:
            for side in (worker, engine):
                side.process.kill()
                side.process.communicate()
    print(f"{'batch':>5} {'channel':8}" + "".join(f"{name:>14}" for name in next(iter(found.values()))[0]))
    for (batch, kind), turns in found.items():
        medians = [statistics.median(turn[name] for turn in turns) for name in turns[0]]
        print(f"{batch:5} {kind:8}" + "".join(f"{value:14.0f}" for value in medians))


def be_side(address: str, is_server: bool) -> None:
    """One process of the two."""
    papers = msgspec.json.decode(sys.stdin.buffer.readline(), type=Papers)
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        if is_server:
            serve(job["kind"], address, papers)
        else:
            print(json.dumps(ask(job["kind"], address, papers, job["batch"], job["iterations"])), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.address is None:
        compare(options.repeats, options.iterations)
    else:
        be_side(options.address, options.serve)


if __name__ == "__main__":
    main()
