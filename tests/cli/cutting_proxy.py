"""A network that breaks: forwards connections to a server, and cuts some of them in the middle of an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress


class CuttingProxy:
    """Forwards one connection after another, as one client makes them.

    Args:
        server: where to.
        cuts: of each streamed answer, after how many bytes to cut it; what comes after them is whole.
    """

    def __init__(self, server: tuple[str, int], cuts: Sequence[int]) -> None:
        self.requests: list[str] = []
        self._server = server
        self._cuts = list(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address = self._listener.getsockname()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        """For the client."""
        host, port = self._address
        return f"http://{host}:{port}"

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """From now on nobody is there."""
        for each in (self._listener, *self._open):
            # Closing alone wouldn't wake the threads.
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with closing(client), socket.create_connection(self._server) as server:
                self._open = [client, server]
                request = client.recv(65536)
                server.sendall(request)
                self.requests.append(request.decode())
                self._forward(server, client)

    def _forward(self, server: socket.socket, client: socket.socket) -> None:
        """Both ways: a request's body may follow its head."""
        up = threading.Thread(target=self._pump, args=(client, server))
        up.start()
        is_stream = "/v1/models" not in self.requests[-1]
        self._pump(server, client, self._cuts.pop(0) if is_stream and self._cuts else None)
        up.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, limit: int | None = None) -> None:
        """Until the source ends, or `limit` bytes have passed; then it is over in both directions."""
        passed = 0
        with suppress(OSError):
            while received := source.recv(65536 if limit is None else min(65536, limit - passed)):
                sink.sendall(received)
                passed += len(received)
                if passed == limit:
                    break
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting_proxy(url: str, *cuts: int) -> Iterator[CuttingProxy]:
    """A proxy in front of the server at `url`."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    with CuttingProxy((host, int(port)), cuts) as proxy:
        yield proxy
