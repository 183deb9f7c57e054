"""Errors in OpenAI's shape: which status, which type, which code (one table, RELIABILITY.md §6.2)."""

from __future__ import annotations

import math
import secrets
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from orcinus.engine.client import ENGINE_DIED, SHUTTING_DOWN
from orcinus.errors import ClientError, EngineDied, InvalidRequest, Overloaded, RequestFailed

JSON = "application/json"
MAX_MESSAGE_CHARACTERS = 2000
# No more of what a client sent is sent back to it than this.
MAX_ECHO_CHARACTERS = 100
_RETRY_SECONDS = 1.0
_UNAVAILABLE = frozenset({ENGINE_DIED, SHUTTING_DOWN})
# Codes of errors that the engine reports although the caller caused them.
_CALLERS_FAULT = frozenset({"invalid_request", "context_length_exceeded"})


def new_request_id() -> str:
    """Names one exchange, for logs and for people who ask about it."""
    return "req_" + secrets.token_hex(16)


class HttpRefusal(ClientError):
    """A request refused for what HTTP says about it, before its content counts."""

    def __init__(self, status: HTTPStatus, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status


class ErrorBody(msgspec.Struct):
    """What OpenAI's clients read."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct):
    """The whole body, and the data of a server-sent event."""

    error: ErrorBody


class ErrorAnswer(msgspec.Struct):
    """An error as it will be answered."""

    status: int
    body: ErrorBody
    headers: dict[str, str] = {}

    def response(self) -> Response:
        """The answer where nothing has been sent yet."""
        content = msgspec.json.encode(ErrorEnvelope(self.body))
        return Response(content, self.status, headers=self.headers, media_type=JSON)


def answer_to(error: Exception) -> ErrorAnswer:
    """The one place that decides how an error reads from outside."""
    match error:
        case HttpRefusal():
            return _client_error(error.status, error)
        case Overloaded():
            body = ErrorBody(_cut(error.message), "rate_limit_error", None, error.code)
            return ErrorAnswer(HTTPStatus.TOO_MANY_REQUESTS, body, _retry_after(error.retry_after))
        case InvalidRequest():
            return _client_error(HTTPStatus.BAD_REQUEST, error)
        case RequestFailed():
            return _failed(error)
        case EngineDied():
            return _unavailable()
        case HTTPException():
            return _routing_error(error)
        case _:
            # What went wrong inside is for the log, not for strangers.
            message = "The server had an error while processing your request."
            return ErrorAnswer(
                HTTPStatus.INTERNAL_SERVER_ERROR, ErrorBody(message, "server_error", None, "internal_error")
            )


async def handle_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler, for all of them."""
    if isinstance(error, HTTPException):
        error = _with_url(request, error)
    return answer_to(error).response()


def _client_error(status: HTTPStatus, error: ClientError) -> ErrorAnswer:
    return ErrorAnswer(status, ErrorBody(_cut(error.message), "invalid_request_error", error.param, error.code))


def _failed(error: RequestFailed) -> ErrorAnswer:
    if error.code in _UNAVAILABLE:
        return _unavailable()
    if error.code == "deadline_unreachable":
        return answer_to(Overloaded(str(error), retry_after=_RETRY_SECONDS, code=error.code))
    if error.code in _CALLERS_FAULT:
        return _client_error(HTTPStatus.BAD_REQUEST, InvalidRequest(str(error), code=error.code))
    body = ErrorBody(_cut(str(error)), "server_error", None, error.code)
    late = error.code == "deadline_exceeded"
    return ErrorAnswer(HTTPStatus.GATEWAY_TIMEOUT if late else HTTPStatus.INTERNAL_SERVER_ERROR, body)


def _unavailable() -> ErrorAnswer:
    body = ErrorBody(
        "The model is not available at the moment; try again.", "server_error", None, "service_unavailable"
    )
    return ErrorAnswer(HTTPStatus.SERVICE_UNAVAILABLE, body, _retry_after(_RETRY_SECONDS))


def _retry_after(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(seconds)))}


def _with_url(request: Request, error: HTTPException) -> HTTPException:
    """Starlette's own errors say little; name what was asked for."""
    asked = f"{request.method} {request.url.path[:MAX_ECHO_CHARACTERS]}"
    return HTTPException(error.status_code, asked, error.headers)


def _routing_error(error: HTTPException) -> ErrorAnswer:
    status = HTTPStatus(error.status_code)
    message, code = f"{status.phrase} ({error.detail})", None
    if status is HTTPStatus.NOT_FOUND:
        message, code = f"Invalid URL ({error.detail})", "unknown_url"
    elif status is HTTPStatus.METHOD_NOT_ALLOWED:
        message, code = f"Not allowed: {error.detail}", "method_not_supported"
    return ErrorAnswer(status, ErrorBody(message, "invalid_request_error", None, code), dict(error.headers or {}))


def _cut(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else message[:MAX_MESSAGE_CHARACTERS] + "…"
