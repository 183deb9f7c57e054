"""The loop around core: carry out what `advance` says. No thread, no decision."""

from __future__ import annotations

from orcinus.core.clock import Clock
from orcinus.core.core import Collect, Core, Expired, Idle, Submit
from orcinus.core.progress import Progress
from orcinus.core.recording import Recorder
from orcinus.core.request import FinishReason, Request
from orcinus.core.scheduler import Scheduler
from orcinus.errors import ClientError
from orcinus.executor import Executor


class Engine:
    """Core, an executor and a clock."""

    def __init__(self, core: Core | Recorder, executor: Executor, clock: Clock) -> None:
        self._core = core
        self.executor = executor
        self._clock = clock

    @property
    def scheduler(self) -> Scheduler:
        """For figures and for tests; the loop itself goes through core."""
        return self._core.core.scheduler if isinstance(self._core, Recorder) else self._core.scheduler

    def add(self, request: Request) -> list[Progress]:
        """Take a request. One that core refuses ends at once, with the reason, for each of its answers."""
        try:
            self._core.add(request, self._clock.now())
        except ClientError as refusal:
            return [
                Progress(
                    request.request_id,
                    index,
                    finish_reason=FinishReason.ERROR,
                    error_code=refusal.code or "invalid_request",
                    error_message=refusal.message,
                )
                for index in range(request.params.n)
            ]
        return []

    def abort(
        self, request_id: str, index: int | None = None, cause: FinishReason = FinishReason.ABORT
    ) -> list[Progress]:
        """End a request or one of its answers; see `Core.abort`."""
        return self._core.abort(request_id, self._clock.now(), index, cause)

    def step(self) -> list[Progress] | None:
        """Carry out one decision; None when there is nothing to do until a request comes."""
        match self._core.advance(self._clock.now()):
            case Submit(plan=plan):
                self.executor.submit(plan)
                return []
            case Collect():
                return self._core.update(self.executor.collect(), self._clock.now())
            case Expired(progress=progress):
                return progress
            case Idle():
                return None

    def close(self) -> None:
        """Let the executor go."""
        self.executor.close()
