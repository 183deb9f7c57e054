"""Plans on their way through a worker: passed on to the next stage on receipt, whatever this one is busy with."""

from __future__ import annotations

import queue
import socket
import threading

from orcinus.executor.frames import Frames
from orcinus.parallel import LinkLost, is_cut


class Relay:
    """Reads plans in a thread of its own, as Orca's control plane does: by the time the tensors come, a stage knows
    what they are (OSDI '22, §4.1)."""

    def __init__(self, incoming: socket.socket, outgoing: socket.socket | None) -> None:
        self._incoming = Frames(incoming)
        self._outgoing = None if outgoing is None else Frames(outgoing)
        self._plans: queue.SimpleQueue[bytes | LinkLost | None] = queue.SimpleQueue()
        # A daemon: at the end it waits in a read that nobody will answer.
        threading.Thread(target=self._run, name="relay", daemon=True).start()

    def next(self) -> bytes | None:
        """The next plan, as it came; waits for it. None when no more will come.

        Raises:
            LinkLost: as far as anybody can tell.
        """
        found = self._plans.get()
        if isinstance(found, LinkLost):
            raise found
        return found

    def _run(self) -> None:
        end = None
        try:
            while (frame := self._incoming.receive()) is not None:
                if self._outgoing is not None:
                    self._outgoing.send(frame)
                self._plans.put(frame)
        except OSError as error:
            # Else it means what an end of file means: there is nobody before us, or nobody behind us.
            if is_cut(error):
                end = LinkLost(f"no plan comes through: {error}")
        for side in (self._incoming, self._outgoing):
            if side is not None:
                side.socket.close()
        self._plans.put(end)
