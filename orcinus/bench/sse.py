"""Server-sent events, as far as token streams use them (WHATWG HTML, section 9.2)."""

from __future__ import annotations

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventParser:
    """Bytes in, however they were cut; data of whole events out. An event that never ended is never given out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._began = False

    def feed(self, received: bytes) -> list[bytes]:
        """The data of the events that these bytes complete."""
        if not self._began and len(self._rest + received) >= len(_BYTE_ORDER_MARK):
            received, self._rest = (self._rest + received).removeprefix(_BYTE_ORDER_MARK), b""
            self._began = True
        lines = (self._rest + received).splitlines(keepends=True)
        # A CR at the end may be half of a CRLF.
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        events = (self._take(line.rstrip(b"\r\n")) for line in lines)
        return [event for event in events if event is not None]

    def _take(self, line: bytes) -> bytes | None:
        """Read one line; the event's data if the line ends one."""
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return None
