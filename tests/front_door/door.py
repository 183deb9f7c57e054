"""What clients see of a served model, and whether they see it all the time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import httpx
from wire import Wire

_NORMAL = {
    "prompt": "What is 12 + 7?",
    "max_tokens": 6,
    "temperature": 0,
    "ignore_eos": True,
    "return_token_ids": True,
    "logprobs": 1,
}
_SETTLE_SECONDS, _LOOK_SECONDS = 20.0, 0.1


@dataclass
class FrontDoor:
    """A served model, and what a normal client sees of it."""

    url: str
    client: httpx.Client
    first_answer: object = field(init=False)

    def __post_init__(self) -> None:
        self.first_answer = self._normal_answer()

    @property
    def wire(self) -> Wire:
        """For bytes that no HTTP client would send."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return Wire((host, int(port)))

    def check_unharmed(self) -> None:
        """A normal request is answered with the bits of the first time, and the server says that it is well."""
        assert self._normal_answer() == self.first_answer
        assert self.client.get("/health").status_code == 200

    def check_idle(self) -> None:
        """Nothing is left behind: no sequence, no KV block."""
        until = time.monotonic() + _SETTLE_SECONDS
        while (load := self._load()) != {"num_running": 0, "num_waiting": 0, "kv_cache_usage": 0}:
            assert time.monotonic() < until, f"the server doesn't come to rest: {load}"
            time.sleep(_LOOK_SECONDS)

    def _normal_answer(self) -> object:
        answer = self.client.post("/v1/completions", json=_NORMAL)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"], answer.json()["usage"]

    def _load(self) -> dict[str, float]:
        told = self.client.get("/load").json()
        return {name: told[name] for name in ("num_running", "num_waiting", "kv_cache_usage")}


class HealthWatch:
    """Asks for /health all the time, beside everything else; keeps what wasn't a 200."""

    def __init__(self, url: str) -> None:
        self.complaints: list[str] = []
        self._url = f"{url}/health"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> HealthWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        with httpx.Client(timeout=10) as client:
            while not self._over.wait(_LOOK_SECONDS):
                try:
                    status = client.get(self._url).status_code
                    if status != 200:
                        self.complaints.append(str(status))
                except httpx.HTTPError as error:
                    self.complaints.append(repr(error))
