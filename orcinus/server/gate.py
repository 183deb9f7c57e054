"""The choke point in front of every route: names the request, checks the key. And how a body may be read."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orcinus.server.errors import JSON, HttpRefusal, answer_to, new_request_id
from orcinus.server.hosts import is_allowed
from orcinus.server.page_api import PAGE_PATHS

logger = logging.getLogger(__name__)

# Everything else needs the key. A new route is closed until somebody opens it here.
PUBLIC_PATHS = frozenset({"/health", "/ready", *PAGE_PATHS})


class ApiKeys:
    """The keys that may pass, as hashes. None at all lets everybody pass."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [_hash(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def allow(self, authorization: str | None) -> bool:
        """Whether a header's key is one of ours; takes the same time whichever it is, and how much of it is right."""
        if not self._hashes:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        offered = _hash(key.strip().encode("latin-1", "replace"))
        matches = [hmac.compare_digest(offered, known) for known in self._hashes]
        return any(matches) and scheme.lower() == "bearer"

    def owner(self, authorization: str | None) -> str:
        """Names the holder of a key, without telling the key; all are one where no keys are needed."""
        if not self._hashes:
            return ""
        return _hash((authorization or "").partition(" ")[2].strip().encode("latin-1", "replace")).hex()


def key_of(request: Request) -> str:
    """Who sent a request that has passed the gate; see `ApiKeys.owner`."""
    owner: str = request.scope["state"]["key"]
    return owner


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Gate:
    """ASGI middleware around the router: for whom a request is, whose it is, and no exception past it.

    Args:
        keys: that may pass.
        listener: where the server listens, and what its user calls that.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, listener: Listener) -> None:
        self._app = app
        self._keys = keys
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with `x-request-id` on whatever is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        has_begun = False

        async def send_named(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await answer_to(refusal).response()(scope, receive, send_named)
            return
        scope["state"]["key"] = self._keys.owner(headers.get("authorization"))
        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if not has_begun:
                await answer_to(error).response()(scope, receive, send_named)

    def _refusal(self, path: str, headers: Headers) -> HttpRefusal | None:
        listener = self._listener
        # With a key a stranger's page can't ask anything, whatever name it came by.
        if not self._keys and not is_allowed(headers.getlist("host"), listener.address, listener.name):
            return _WRONG_HOST
        if path not in PUBLIC_PATHS and not self._keys.allow(headers.get("authorization")):
            return _NO_KEY
        return None


@dataclass(frozen=True, slots=True)
class Listener:
    """Where the server listens, and what its user calls that; without an address anything may be meant."""

    address: str = ""
    name: str = ""


_NO_KEY = HttpRefusal(
    HTTPStatus.UNAUTHORIZED,
    "Incorrect or missing API key. Send it as `Authorization: Bearer KEY`.",
    code="invalid_api_key",
)
_WRONG_HOST = HttpRefusal(
    HTTPStatus.MISDIRECTED_REQUEST,
    "Without a key this server answers only to localhost and its own address. Start it with --api-key to use another "
    "name.",
    code="host_not_allowed",
)


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        HttpRefusal: it says it is something else, or it is larger than `max_bytes`; no more than that is kept.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if media_type != JSON or encoding != "identity":
        raise HttpRefusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"send the body as `Content-Type: {JSON}`, without content encoding",
            code="unsupported_content_type",
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> HttpRefusal:
    return HttpRefusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {max_bytes} bytes")
