"""How many tokens a second go through the front door: 256 streams over a null engine, one SSE event a token.

    python benchmarks/http_streams.py [--streams 256] [--tokens 400] [--front-ends 1] [--repeats 5]

The client is a raw socket a stream on the same cores, read by one loop; every event is parsed and its text compared.
Figures count from the first request sent to the last event read.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVER = """
import sys
from pathlib import Path
from orcinus.server.run import ServeSettings, serve
settings = ServeSettings(model=Path(sys.argv[1]), port=0, front_ends=int(sys.argv[3]), max_queue_seconds=600)
serve(settings, lambda known: [sys.executable, sys.argv[2]], on_progress=lambda line: None,
      on_ready=lambda description, url: print(url, flush=True))
"""


def write_tokenizer(folder: Path) -> None:
    """One token a byte, so that token 100 + k is a letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {f"<{i}>": i for i in range(100)} | {letter: 100 + i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def ask(address: tuple[str, int], num_tokens: int) -> socket.socket:
    """A connection with its request sent."""
    body = json.dumps({"prompt": [105] * 16, "max_tokens": num_tokens, "ignore_eos": True, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(address)
    connection.sendall(head.encode() + body)
    connection.setblocking(False)
    return connection


def run(address: tuple[str, int], streams: int, num_tokens: int, expected: str) -> float:
    """Seconds for all streams; every event is checked."""
    begun = time.perf_counter()
    selector = selectors.DefaultSelector()
    received: dict[socket.socket, bytearray] = {}
    for _ in range(streams):
        connection = ask(address, num_tokens)
        received[connection] = bytearray()
        selector.register(connection, selectors.EVENT_READ)
    left = streams
    while left:
        for key, _ in selector.select():
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            data = received[connection]
            data += connection.recv(65536)
            assert data.startswith(b"HTTP/1.1 200 "), bytes(data[:400])
            if data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                selector.unregister(connection)
                connection.close()
                left -= 1
    seconds = time.perf_counter() - begun
    for data in received.values():
        events = [json.loads(line[6:]) for line in bytes(data).split(b"\n") if line.startswith(b"data: {")]
        assert len(events) == num_tokens, f"{len(events)} events for {num_tokens} tokens"
        assert "".join(event["choices"][0]["text"] for event in events) == expected
    return seconds


def main() -> None:
    """Print tokens a second: median and spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--front-ends", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        from tokenizers import Tokenizer

        ids = [100 + (16 + i) % 26 for i in range(arguments.tokens)]
        expected = Tokenizer.from_file(str(Path(folder) / "tokenizer.json")).decode(ids)
        command = [sys.executable, "-c", SERVER, folder, str(HERE / "null_engine.py"), str(arguments.front_ends)]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(HERE)}
        )
        assert server.stdout is not None
        host, port = server.stdout.readline().strip().removeprefix("http://").rsplit(":", 1)
        try:
            run((host, int(port)), 16, 50, Tokenizer.from_file(f"{folder}/tokenizer.json").decode(ids[:50]))
            speeds = [
                arguments.streams
                * arguments.tokens
                / run((host, int(port)), arguments.streams, arguments.tokens, expected)
                for _ in range(arguments.repeats)
            ]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    middle, spread = statistics.median(speeds), f"{min(speeds):.0f} .. {max(speeds):.0f}"
    print(f"{arguments.streams} streams, {arguments.front_ends} front ends: {middle:.0f} tokens/s ({spread})")


if __name__ == "__main__":
    main()
