"""One simulated engine: core's real code, a worker that checks what it reads, and clients that check what they get."""

from __future__ import annotations

import hashlib
from collections import Counter, deque

import lives
import msgspec
import sim_checks
import sim_plans
from closed_form import Slot, Trouble, Worker
from lives import Life
from sim_clients import Client
from sim_parts import Minutes, PlanOut, invented_result

from orcinus.core.core import Collect, Core, Decision, Expired, Idle, Submit
from orcinus.core.kv.tiers import HeldBlock, OnDisk
from orcinus.core.plan import IterationPlan, IterationResult, SwapIn
from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, Request
from orcinus.core.sequence import Sequence, SequenceState
from orcinus.errors import InvalidRequest, Overloaded

TICK = 0.001


class World:
    """Every event is followed by every check."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.config = life.config
        self.now = 0.0
        self.clients: dict[str, Client] = {}
        self.num_arrived = 0
        self.held_for = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._encode = msgspec.msgpack.Encoder().encode
        self.start_engine({})

    def start_engine(self, disk: dict[int, Slot]) -> None:
        """Core and worker, both new; but for the disk."""
        self.journal = Minutes()
        held = tuple(
            HeldBlock(at - self.config.num_host_blocks, slot.generation, slot.key, slot.parent)
            for at, slot in disk.items()
        )
        self.core = Core(self.config, self.journal, OnDisk(b"seed", held))
        self.scheduler = self.core.scheduler
        self.worker = Worker(self.config.block_size, self.config.num_host_blocks)
        self.worker.elsewhere = disk
        self.in_flight: deque[PlanOut] = deque()
        self.stale: list[IterationResult] = []
        self._paths: dict[tuple[tuple[str, ...], bytes], list[int]] = {}
        # In the order in which this engine got them: the order of service within a class, under fcfs.
        self.order: dict[str, int] = {}
        self.num_preempted: Counter[str] = Counter()
        self.cached: dict[str, int] = {}
        self.names: dict[int, str] = {}
        # Sequences that have blocks, and what plans and results did that the journal has to tell.
        self.holding: set[int] = set()
        self.to_tell: Counter[str] = Counter()
        self.num_evicted = self.num_spilled = 0
        self.states: dict[int, SequenceState] = {}

    @property
    def trace(self) -> str:
        """A hash of all that core has said (I30)."""
        return self._digest.hexdigest()

    def live(self) -> None:
        """All events; then no more trouble, and everything has to end (liveness); then nothing may be left."""
        for event in self.life.events:
            self.happen(event)
        self.heal()
        self.submit(lives.Arrive(0, 0, 0, 1, 1).request(self.now, [1]))
        self.heal()
        sim_checks.check_quiescence(self)

    def heal(self) -> None:
        """Until nothing is left. The eldest moves with each plan, so no more are needed than all have positions."""
        self.held_for = 0
        todo = sum(client.max_work for client in self.clients.values() if client.is_open)
        for _ in range(2 * (todo + 2) * (self.config.plans_in_flight + 1)):
            if not self.scheduler.groups() and not self.in_flight:
                return
            self.step()
        raise AssertionError("I18: no end in sight")

    def happen(self, event: lives.Event) -> None:
        """One event; it does nothing if it means nothing now."""
        self.held_for -= self.held_for > 0
        match event:
            case lives.Arrive():
                self.arrive(event)
            case lives.Abort():
                self._abort_one_of_all(event)
            case lives.Resume():
                self.resume(event.which)
            case lives.Advance():
                self.advance()
            case lives.Step():
                for _ in range(event.times):
                    self.step()
            case lives.Run():
                self.run_next(event.trouble)
            case lives.Collect():
                self.collect()
            case lives.Hold():
                self.held_for = event.events
            case lives.Stale():
                self.deliver_stale(event.which)
            case lives.Epoch():
                self.new_epoch(event)
            case lives.Crash():
                self.crash()
            case lives.Jump():
                self.now += event.seconds
                self.check()

    def arrive(self, event: lives.Arrive) -> None:
        """A new request, perhaps the next turn of an old one."""
        prompt = event.prompt()
        if event.follows is not None and self.clients:
            before = list(self.clients.values())[event.follows % len(self.clients)]
            prompt = before.prompt + before.answers[0].tokens + prompt
            who = {name: getattr(before.request, name) for name in ("tenant", "cache_salt", "adapter")}
            self.submit(msgspec.structs.replace(event.request(self.now, prompt), **who))
        else:
            self.submit(event.request(self.now, prompt))

    def submit(self, request: Request) -> None:
        """It comes in, or is refused as it must be."""
        must_refuse = sim_checks.is_impossible(request, self.config)
        now = self._tick()
        try:
            self.core.add(request, now)
        except Overloaded:
            assert self.config.policy == "deadline", "I29: refused for nothing"
            assert request.deadline is not None, "I29: refused for nothing"
        except InvalidRequest as error:
            if not must_refuse or error.code != "context_length_exceeded":
                raise AssertionError("I29: refused for nothing") from error
        else:
            assert not must_refuse, "I19: took what can never run"
            self.clients[request.request_id] = Client(request)
            self._note(request.request_id)
        self.check()

    def _note(self, request_id: str) -> None:
        self.order[request_id] = len(self.order)

    def _abort_one_of_all(self, event: lives.Abort) -> None:
        if self.clients:
            names = list(self.clients)
            self.abort(names[event.which % len(names)], event.index, event.cause)

    def abort(self, request_id: str, index: int | None, cause: FinishReason) -> None:
        """The client of an answer, or of all, is gone; or a stop string was found."""
        client = self.clients[request_id]
        meant = [
            at
            for at, answer in enumerate(client.answers)
            if answer.finish_reason is None and (index is None or at == index)
        ]
        # Which beams become which answers isn't known before the end.
        meant = list(range(len(client.answers))) if meant and client.beams else meant
        client.ended |= dict.fromkeys(meant, cause)
        progress = self.core.abort(request_id, self._tick(), index, cause)
        assert [part.index for part in progress] == meant, "I14: an abort ends what is open, once"
        self._deliver(progress)
        self.check()

    def resume(self, which: int) -> None:
        """Hang up, and come back as somebody else."""
        if not self.clients:
            return
        name = list(self.clients)[which % len(self.clients)]
        self.abort(name, None, FinishReason.ABORT)
        client = self.clients[name]
        if any(answer.tokens != answer.right for answer in client.answers):
            self.num_arrived += 1
            again = client.resumption(f"again{self.num_arrived}")
            self.submit(msgspec.structs.replace(again, arrived_at=self.now))

    def advance(self) -> Decision:
        """Ask core, and keep its plan."""
        before = sim_plans.Before.of(self)
        decision = self.core.advance(self._tick())
        match decision:
            case Submit():
                self._submit_plan(decision.plan, before)
            case Expired():
                assert decision.progress
                self._deliver(decision.progress)
            case Collect():
                assert self.in_flight, "nothing is in flight"
            case Idle():
                assert not self.scheduler.groups(), "I18: there is work and nothing in flight, yet core is idle"
        sim_plans.check_decision(self, before, decision)
        self.check()
        return decision

    def _submit_plan(self, plan: IterationPlan, before: sim_plans.Before) -> None:
        sequences = self.sequences()
        for new in plan.new:
            client = self.clients[sequences[new.seq_id].request.request_id]
            sim_plans.check_statement(new, client)
            self.worker.first_states[new.seq_id] = client.first
            self.names[new.seq_id] = client.request.request_id
        self.to_tell["restored"] += sum(isinstance(swap, SwapIn) for swap in (*plan.swaps, *plan.ahead))
        touched = sim_plans.check_plan(self, plan, sequences, before)
        self.in_flight.append(PlanOut(plan, touched))
        self._digest.update(self._encode(plan))

    def run_next(self, trouble: Trouble | None = None) -> None:
        """The worker runs the oldest plan that it hasn't run."""
        for out in self.in_flight:
            if out.result is None:
                out.result = self.worker.run(out.plan, trouble)
                return

    def collect(self) -> None:
        """The oldest result comes in, unless the worker is slow."""
        if not self.in_flight or self.held_for:
            return
        if self.in_flight[0].result is None:
            self.run_next()
        plan, result = (out := self.in_flight.popleft()).plan, out.result
        assert result is not None
        doubtful = sim_plans.doubtful_blocks(self, result)
        due = sim_plans.due_tokens(self, result)
        self.to_tell["lost"] += sim_plans.count_in_vain(self, plan, result)
        progress = self.core.update(result, self._tick())
        sim_plans.check_failures(self, doubtful)
        sim_plans.check_ledger(progress, due)
        self._deliver(progress)
        self.check()

    def step(self) -> None:
        """Submit if core can, else collect."""
        if isinstance(self.advance(), Collect):
            self.collect()

    def deliver_stale(self, which: int) -> None:
        """A result of an older epoch changes nothing, however often it comes."""
        if self.stale:
            assert self.core.update(self.stale[which % len(self.stale)], self._tick()) == [], (
                "I23: an old result counts"
            )
            self.check()

    def new_epoch(self, event: lives.Epoch) -> None:
        """The worker had begun `half_done` units of the first plan that it hasn't run."""
        self._run_partly(event.half_done)
        # Some worker may still finish what the others were fenced from.
        self.stale += [out.result or invented_result(out.plan) for out in self.in_flight]
        self.in_flight.clear()
        if event.kv_lost:
            self.worker.lose_memory()
        self.core.new_epoch(self._tick(), kv_lost=event.kv_lost)
        self.check()

    def _run_partly(self, units: int) -> None:
        unrun = next((out for out in self.in_flight if out.result is None), None)
        if unrun is not None and units:
            self.worker.apply_state(unrun.plan)
            for work in unrun.plan.work[: units - 1]:
                self.worker.write(work)
            if units % 2:
                self.worker.apply_ahead(unrun.plan)

    def crash(self) -> None:
        """The front end submits what is open to the next engine, and says what has ended outside."""
        self.start_engine(self.worker.disk)
        for name, client in self.clients.items():
            if client.is_open:
                client.begin_anew()
                client.request = client.resumption(name)
                self.core.add(client.request, self._tick())
                self._note(name)
                for index, answer in enumerate(client.answers):
                    if answer.finish_reason is not None:
                        # It says so once more, if its tokens don't; nobody listens.
                        self.core.abort(name, self._tick(), index, answer.finish_reason)
        self.check()

    def sequences(self) -> dict[int, Sequence]:
        """By their numbers, ended ones of live groups too."""
        return {s.seq_id: s for group in self.scheduler.groups() for s in group.sequences}

    def path_states(self, path: tuple[tuple[str, ...], bytes]) -> list[int]:
        """The KV that a path of the tree stands for; most paths are there for many events."""
        states = self._paths.get(path)
        if states is None:
            states = self._paths[path] = sim_checks.states_of_path(path)
        return states

    def check(self) -> None:
        """Every invariant of the state, and every line of the journal."""
        news = self.journal.read()
        for event in news:
            self._digest.update(self._encode(event))
        sim_checks.check_journal(self, news)
        sim_checks.check_state(self)

    def _deliver(self, progress: list[Progress]) -> None:
        for part in progress:
            self._digest.update(self._encode(part))
            self.clients[part.request_id].take(part, self.now)
            right = self.cached.get(part.request_id, 0)
            assert not part.tokens or part.cached_tokens == right, "I13: a wrong count of cached tokens"

    def _tick(self) -> float:
        self.now += TICK
        return self.now
