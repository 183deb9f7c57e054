"""Requests that kill engines are found by halves and refused; nobody else is, and everybody else is served."""

from __future__ import annotations

from core_harness import make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.quarantine import MAX_CRASHES_ALONE, Investigation, Quarantine, Suspects


class Life:
    """One engine: runs whom the quarantine lets in, and dies when poison has run for its number of iterations."""

    def __init__(self, suspects: Suspects, requests: dict[str, int], poison: dict[str, int]) -> None:
        self.quarantine = Quarantine(suspects)
        self.poison = poison
        self.left = dict(requests)
        self.ran = dict.fromkeys(requests, 0)
        self.running: list[str] = []
        self.refused = [name for name in requests if self.quarantine.refuses(name)]
        for name in requests:
            if name not in self.refused:
                if self.quarantine.is_active:
                    self.quarantine.hold(make_request(name))
                else:
                    self.running.append(name)

    def iterate(self) -> bool:
        """One iteration; False if the engine died in it."""
        self.running += [request.request_id for request in self.quarantine.due()]
        for name in self.running:
            self.ran[name] += 1
            if name in self.poison and self.ran[name] > self.poison[name]:
                return False
        for name in list(self.running):
            self.quarantine.settle(name)
            self.left[name] -= 1
            if self.left[name] == 0:
                self.running.remove(name)
        return True


def serve(requests: dict[str, int], poison: dict[str, int]) -> tuple[set[str], set[str], int]:
    """Who finished, who was refused, and how many engines died. Progress isn't lost by a crash."""
    investigation, suspects = Investigation(), Suspects()
    finished: set[str] = set()
    left = dict(requests)
    for deaths in range(500):
        life = Life(suspects, left, poison)
        for _ in range(400):
            alive = life.iterate()
            done = {name for name, count in life.left.items() if count == 0}
            finished |= done
            if not alive:
                break
            if set(life.left) - set(life.refused) == done:
                return finished, set(life.refused), deaths
        else:
            raise AssertionError("somebody waits for good")
        suspects = investigation.after_crash(list(life.running))
        left = {name: count for name, count in life.left.items() if count > 0}
    raise AssertionError("no end of deaths")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from([f"r{i}" for i in range(12)]), st.integers(1, 6), min_size=1),
    st.data(),
)
def test_culprits_are_refused_and_all_others_finish(requests: dict[str, int], data: st.DataObject) -> None:
    culprits = data.draw(st.lists(st.sampled_from(sorted(requests)), unique=True, max_size=3))
    poison = dict.fromkeys(culprits, 0)
    finished, refused, deaths = serve(requests, poison)
    assert refused == set(culprits)
    assert finished == set(requests) - refused
    # Each culprit costs a bisection, and its crashes alone.
    assert deaths <= len(culprits) * (MAX_CRASHES_ALONE + 6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 10), st.integers(1, 3))
def test_poison_that_acts_late_takes_no_innocent_along(count: int, delay: int) -> None:
    requests = {f"r{i}": 8 for i in range(count)}
    finished, refused, _ = serve(requests, {"r1": delay})
    assert refused <= {"r1"}
    assert finished >= set(requests) - {"r1"}


def test_a_kill_from_outside_makes_nobody_suspect_and_clears_nobody() -> None:
    investigation = Investigation()
    assert investigation.after_kill() == Suspects()
    first = investigation.after_crash(["a", "b", "c"])
    assert first.groups == (("a", "b"), ("c",))
    assert investigation.after_kill() == first


def test_a_crash_without_requests_accuses_nobody() -> None:
    assert Investigation().after_crash([]) == Suspects()


def test_those_who_do_not_come_are_not_waited_for() -> None:
    quarantine = Quarantine(Suspects((("a", "b"), ("c",))))
    quarantine.hold(make_request("a"))
    quarantine.hold(make_request("c"))
    quarantine.hold(make_request("other"))
    assert [request.request_id for request in quarantine.due()] == ["a"]
    quarantine.settle("a")
    assert quarantine.due() == []
    quarantine.give_up_absent(frozenset())
    assert [request.request_id for request in quarantine.due()] == ["c"]
    quarantine.settle("c")
    assert [request.request_id for request in quarantine.due()] == ["other"]
    quarantine.give_up_absent(frozenset())
    assert not quarantine.is_active


def test_a_client_that_leaves_is_dropped_whether_held_or_not() -> None:
    quarantine = Quarantine(Suspects((("a",), ("b",))))
    quarantine.hold(make_request("b"))
    assert not quarantine.drop("a")
    assert quarantine.drop("b")
    assert quarantine.due() == []
    quarantine.settle("b")
    quarantine.give_up_absent(frozenset())
    quarantine.due()
    assert not quarantine.is_active
    quarantine.settle("x")
