"""The scheduler: which sequences run in the next iteration, and what their results mean.

Iteration-level scheduling after Orca (OSDI '22), a token budget after Sarathi-Serve (OSDI '24), paged KV with
preemption by recompute after vLLM (SOSP '23). Pure: time comes in as an argument, nothing is read or awaited.
"""

from __future__ import annotations

import heapq
from math import inf

from orcinus.core import check
from orcinus.core import journal as why
from orcinus.core import leap as leaping
from orcinus.core.beams import Beams
from orcinus.core.config import SchedulerConfig, refuse_impossible
from orcinus.core.draft import Entry
from orcinus.core.kv.pool import BlockPool
from orcinus.core.kv.prefix import PrefixCache
from orcinus.core.kv.tiers import OnDisk, Tiers
from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.core.planner import Planner
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request, ServiceClass
from orcinus.core.results import Results
from orcinus.core.sequence import Sequence, SequenceGroup
from orcinus.core.state import SchedulerState
from orcinus.errors import InvalidRequest, Overloaded

NOTHING_ON_DISK = OnDisk()


class Scheduler:
    """Requests in, plans out, results in, progress out. `planner` and `results` do the middle on `state`."""

    def __init__(self, config: SchedulerConfig, journal: why.Journal, on_disk: OnDisk = NOTHING_ON_DISK) -> None:
        self.config = config
        self.journal = journal
        self.state = SchedulerState(config, journal, on_disk)
        self.planner = Planner(self.state)
        self._results = Results(self.state)
        self._num_requests = 0
        self._num_sequences = 0
        # (deadline, group number, group) of those that have one, soonest first; ended groups are skipped when met.
        self._deadlines: list[tuple[float, int, SequenceGroup]] = []

    @property
    def pool(self) -> BlockPool:
        """The KV blocks."""
        return self.state.pool

    @property
    def cache(self) -> PrefixCache:
        """The prefix cache."""
        return self.state.cache

    @property
    def tiers(self) -> Tiers:
        """KV beside the device's."""
        return self.state.tiers

    @property
    def waiting(self) -> list[SequenceGroup]:
        """Groups in the queue, in service order."""
        return self.state.queues.waiting

    @property
    def running(self) -> list[SequenceGroup]:
        """Groups admitted, in service order."""
        return self.state.queues.running

    @property
    def epoch(self) -> int:
        """Results of older ones don't count."""
        return self.state.epoch

    @property
    def num_iterations(self) -> int:
        """Plans issued so far."""
        return self.state.num_iterations

    @property
    def num_in_flight(self) -> int:
        """Plans issued and not yet collected."""
        return len(self.state.in_flight)

    @property
    def num_running(self) -> int:
        """Sequences admitted and alive."""
        return self.state.queues.num_running

    def groups(self) -> list[SequenceGroup]:
        """Every live group, in the order of `add`."""
        return list(self.state.queues.groups.values())

    # ---- requests come and go

    def add(self, request: Request, now: float) -> None:
        """Take a request into the queue.

        Raises:
            InvalidRequest: its id is in use, it could not run even alone, or nothing of it is left to generate.
            Overloaded: its deadline can't be met (policy deadline).
        """
        if request.request_id in self.state.queues.groups:
            raise InvalidRequest(f"request id {request.request_id[:100]!r} is in use", param="request_id")
        refuse_impossible(request, self.config)
        count = request.num_sequences
        sequences = [Sequence(self._num_sequences + index, request, index) for index in range(count)]
        for sequence in sequences:
            sequence.settle()
        if all(sequence.is_finished for sequence in sequences):
            raise InvalidRequest("every answer in resumed is complete; nothing is left to generate", param="resumed")
        beams = None if request.beams is None else Beams(request)
        group = SequenceGroup(request, self._num_requests, sequences, beams=beams)
        self.state.queues.enter(group, now)
        self._refuse_late(group, now)
        self.state.has_realtime |= request.service_class is ServiceClass.REALTIME
        self._num_requests += 1
        self._num_sequences += count
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, group.number, group))
        resumed = sum(sequence.num_generated for sequence in sequences)
        first, prompt = sequences[0].seq_id, request.num_prompt_tokens
        self.journal.write(
            why.Added(now, request.request_id, prompt, request.max_tokens, count, resumed, first_seq_id=first)
        )

    def _refuse_late(self, group: SequenceGroup, now: float) -> None:
        """An answer that was begun, perhaps elsewhere, is never refused."""
        queues, request = self.state.queues, group.request
        if request.deadline is None or request.resumed:
            return
        ahead = queues.waiting[: queues.waiting.index(group)]
        if queues.policy.can_make_it(group, ahead, now):
            return
        queues.leave(group, was_running=False)
        self.journal.write(why.Refused(now, request.request_id, "deadline"))
        raise Overloaded(
            "the request can't be answered before its deadline; allow more time, or try again when there is less to do",
            retry_after=1.0,
            code="deadline_unreachable",
        )

    def abort(
        self, request_id: str, now: float, index: int | None = None, cause: FinishReason = FinishReason.ABORT
    ) -> list[Progress]:
        """End a request, or one of its answers; nothing happens if it has ended already.

        Which beams become which answers isn't known before the end: of a search all or none can be ended.
        """
        group = self.state.queues.groups.get(request_id)
        if group is None:
            return []
        # A search may have more beams than answers: none of those further ones can be meant.
        num_answers = group.request.params.n
        ending = [each for each in group.live if index is None or each.index == index < num_answers]
        return self.state.end_each(group, ending if group.beams is None or not ending else group.live, cause, now)

    def expire(self, now: float) -> list[Progress]:
        """End every request whose deadline has passed, begun or not: nobody wants its answer any more."""
        progress: list[Progress] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, group = heapq.heappop(self._deadlines)
            message = f"the request's deadline passed after {now - group.request.arrived_at:.3f} s"
            progress += self.state.end_all(group, "deadline_exceeded", message, now)
        return progress

    # ---- plans go out, results come in

    def schedule(self, now: float) -> IterationPlan | None:
        """The next plan, or None if nothing can run."""
        return self.planner.schedule(now)

    def update(self, result: IterationResult, now: float) -> list[Progress]:
        """Commit the oldest plan in flight. A result of an older epoch changes nothing."""
        return self._results.update(result, now)

    def leap(self, answers: leaping.Answers) -> leaping.Leap | None:
        """See `Core.leap`."""
        deadline = self._deadlines[0][0] if self._deadlines else inf
        return leaping.begin(self.state, self.planner, self._results, answers, deadline)

    def refresh(self, now: float) -> None:
        """Bring both queues into the order of `now`; `schedule` does so itself."""
        self.state.queues.refresh(now)

    # ---- epochs

    def new_epoch(self, now: float, *, kv_lost: bool) -> None:
        """Abandon every plan in flight; the workers that ran them are fenced.

        Nothing that they did counts. With `kv_lost` the workers' memory is gone too, and all sequences start over from
        their tokens.
        """
        state = self.state
        abandoned = len(state.in_flight)
        entries = [entry for plan in state.in_flight for entry in plan.entries]
        for entry in entries:
            entry.sequence.in_flight = 0
            entry.sequence.num_pending = 0
        for plan in state.in_flight:
            state.pool.unpin(plan.pins)
            for fetch in plan.fetches:
                state.pool.unpin(fetch.blocks)
        state.tiers.abandon([plan.swaps for plan in state.in_flight], kv_lost=kv_lost)
        state.in_flight.clear()
        for group in self.groups() if kv_lost else self._interrupted_in_copy(entries):
            if group in self.running:
                state.stop(group)
        if kv_lost:
            state.cache.clear()
        for group in self.groups():
            for sequence in group.sequences:
                sequence.num_scheduled = sequence.num_computed
                sequence.is_known = False
        state.forget = []
        state.epoch += 1
        self.journal.write(why.EpochStarted(now, state.epoch, abandoned, kv_lost))

    def _interrupted_in_copy(self, entries: list[Entry]) -> list[SequenceGroup]:
        """Groups that an abandoned plan copied a block for, or didn't.

        Copying once more would be no remedy: the source may have been written by its last owner since.
        """
        alive = [entry.sequence for entry in entries if entry.copied and not entry.sequence.is_finished]
        return [self.state.group_of(sequence) for sequence in alive]

    def check(self) -> None:
        """See `core/check.py`."""
        check.check(self.state)
