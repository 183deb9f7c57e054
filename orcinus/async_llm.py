"""`AsyncLLM`: the engine in a process of its own, replaced when it dies; answers as they grow. Without torch."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from orcinus.core.request import FinishReason, SamplingParams
from orcinus.engine.child import private_directory
from orcinus.engine.client import EngineClient
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import engine_command, engine_config
from orcinus.engine.door import Door
from orcinus.engine.messages import EngineDescription
from orcinus.engine.supervisor import EngineSupervisor
from orcinus.errors import EngineDied, InvalidRequest
from orcinus.outputs import RequestCollector, RequestOutput
from orcinus.text.gguf import with_folder
from orcinus.text.tokenizer import Tokenizer


class AsyncLLM:
    """A model that answers from another process. Use as `async with AsyncLLM(model=...) as llm`.

    Args:
        model, seed, options: as for `LLM`.

    Raises:
        ConfigurationError: an unknown option or an impossible value.
    """

    def __init__(self, model: str | Path, *, seed: int = 0, **options: object) -> None:
        self._config = engine_config({"model": with_folder(str(model)), **options})
        self._seeds = random.Random(seed)
        self._clock = MonotonicClock()
        self._client: EngineClient | None = None
        self._supervisor: EngineSupervisor | None = None
        self._cleanup = ExitStack()
        self._door: Door | None = None
        self.tokenizer: Tokenizer | None = None

    async def start(self) -> EngineDescription:
        """Start the engine process and wait until it is ready.

        Raises:
            ConfigurationError, CheckpointError, EngineDied: it can't start; the message says what to do.
        """
        directory = self._cleanup.enter_context(private_directory())
        self._client = EngineClient(b"async-llm", lambda: supervisor.replace_engine())
        supervisor = self._supervisor = EngineSupervisor(
            lambda known: engine_command(self._config, known), directory, [self._client], lambda line: None
        )
        description = await supervisor.start()
        self.tokenizer = Tokenizer.load(Path(self._config.model))
        self._door = Door(description, self._seeds)
        return description

    async def generate(
        self, prompt: str | Sequence[int], params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        """The output so far, each time it has grown. Leaving the loop early ends the request.

        Raises:
            InvalidRequest: it can't be served.
            RequestFailed: it ended in an error.
        """
        if self._client is None or self._door is None:
            raise EngineDied("the engine has not been started; use `async with AsyncLLM(...)` or await start()")
        request = self._door.admit(request_id, self._tokens(prompt), params, arrived_at=self._clock.now())
        with self._client.submit(request) as stream:

            def end(index: int) -> None:
                stream.abort(index, FinishReason.STOP)

            text = prompt if isinstance(prompt, str) else None
            collector = RequestCollector(request, text, self.tokenizer, end)
            async for progress in stream:
                collector.take(progress, self._clock.now())
                yield collector.output
                if collector.output.finished:
                    return

    async def close(self) -> None:
        """End what runs, and the engine process."""
        if self._supervisor is not None:
            await self._supervisor.close()
        if self._client is not None:
            await self._client.close()
        self._cleanup.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _tokens(self, prompt: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise InvalidRequest("this checkpoint has no tokenizer; give token ids", param="prompt")
        return self.tokenizer.encode(prompt, add_special_tokens=True)
