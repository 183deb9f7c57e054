"""The choke point in front of every route: names the request, checks the key. And how a body may be read."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orcinus.server.errors import JSON, HttpRefusal, answer_to
from orcinus.server.page_api import PAGE_PATHS

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
    """ASGI middleware around the router."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with `x-request-id` on whatever is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = "req_" + secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        authorization = Headers(scope=scope).get("authorization")
        if scope["path"] in PUBLIC_PATHS or self._keys.allow(authorization):
            scope["state"]["key"] = self._keys.owner(authorization)
            await self._app(scope, receive, send_named)
        else:
            await answer_to(_NO_KEY).response()(scope, receive, send_named)


_NO_KEY = HttpRefusal(
    HTTPStatus.UNAUTHORIZED,
    "Incorrect or missing API key. Send it as `Authorization: Bearer KEY`.",
    code="invalid_api_key",
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
