"""How answers leave as one body. A client that goes away ends the work for it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from orcinus.server.answers import Answers, Piece
from orcinus.server.errors import JSON
from orcinus.server.responses import Dialect, PromptTokensDetails, Usage


class WholeAnswer:
    """ASGI response: waits for all answers, then sends them as one JSON body."""

    def __init__(self, answers: Answers, dialect: Dialect) -> None:
        self._answers = answers
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first.

        Raises:
            OrcinusError: nothing has been sent then.
        """
        with self._answers as answers:
            await run_while_connected(receive, self._respond(answers, scope, receive, send))

    async def _respond(self, answers: Answers, scope: Scope, receive: Receive, send: Send) -> None:
        answers.submit()
        pieces: list[Piece] = []
        async for batch in answers.batches():
            pieces += batch
        body = msgspec.json.encode(self._dialect.whole(pieces, usage_of(answers)))
        await Response(body, media_type=JSON)(scope, receive, send)


def usage_of(answers: Answers) -> Usage:
    """Token counts so far."""
    prompt, generated = answers.num_prompt_tokens, answers.num_generated
    return Usage(prompt, generated, prompt + generated, PromptTokensDetails(answers.num_cached))


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; when the client disconnects, cancel it there and then.

    `receive` must have delivered the whole body: nothing but the disconnect may follow.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
