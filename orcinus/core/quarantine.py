"""Who may run after a crash: the requests that ran when an engine died are tried in halves (RELIABILITY.md, F31).

One that crashes the engine twice while it is alone is refused. Nobody else loses anything but time. Pure, like all of
core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from orcinus.core.request import Request

# Crashes alone after which a request is refused.
MAX_CRASHES_ALONE = 2


class Suspects(msgspec.Struct, frozen=True):
    """Told to a new engine: `groups` are tried one after the other, `refused` never again."""

    groups: tuple[tuple[str, ...], ...] = ()
    refused: tuple[str, ...] = ()


@dataclass
class Investigation:
    """Over all crashes: what is known about whom."""

    refused: set[str] = field(default_factory=set)
    _crashes_alone: Counter[str] = field(default_factory=Counter)
    _untried: list[tuple[str, ...]] = field(default_factory=list)

    def after_crash(self, running: Sequence[str]) -> Suspects:
        """An engine died by itself while these requests ran.

        Groups have their turn one after the other, so the last one of which somebody ran was on trial: those before it
        had passed, those after it stay suspects. Whoever is tried next comes first, when nobody else runs yet.
        """
        turn = max((i for i, group in enumerate(self._untried) if set(group) & set(running)), default=None)
        suspects = list(running) if turn is None else [each for each in self._untried[turn] if each in running]
        groups = [] if turn is None else self._untried[turn + 1 :]
        if len(suspects) == 1:
            self._crashes_alone[suspects[0]] += len(running) == 1
            if self._crashes_alone[suspects[0]] >= MAX_CRASHES_ALONE:
                self.refused.add(suspects[0])
            else:
                groups = [tuple(suspects), *groups]
        elif suspects:
            half = (len(suspects) + 1) // 2
            groups = [tuple(suspects[:half]), tuple(suspects[half:]), *groups]
        self._untried = groups
        return Suspects(tuple(groups), tuple(sorted(self.refused)))

    def after_kill(self) -> Suspects:
        """Somebody else ended the engine: nobody is suspected, and nobody is acquitted."""
        return Suspects(tuple(self._untried), tuple(sorted(self.refused)))


class Quarantine:
    """Inside an engine: holds everybody back but the group whose turn it is."""

    def __init__(self, suspects: Suspects) -> None:
        self._groups = [set(group) for group in suspects.groups]
        self._refused = frozenset(suspects.refused)
        self._held: dict[str, Request] = {}

    @property
    def is_active(self) -> bool:
        """Groups are left to be tried."""
        return bool(self._groups)

    def refuses(self, request_id: str) -> bool:
        """This one has had its chances."""
        return request_id in self._refused

    def hold(self, request: Request) -> None:
        """It has come; `due` says when it may start."""
        self._held[request.request_id] = request

    def drop(self, request_id: str) -> bool:
        """Its client went away: whether it was held, so that nothing else need be told."""
        self.settle(request_id)
        return self._held.pop(request_id, None) is not None

    def settle(self, request_id: str) -> None:
        """The engine lived through an iteration with it, or it is gone: it isn't waited for any more."""
        if self._groups:
            self._groups[0].discard(request_id)

    def due(self) -> list[Request]:
        """Who may start now: the members present of the first unsettled group, or everybody once none is left."""
        while self._groups and not self._groups[0]:
            del self._groups[0]
        if not self._groups:
            everybody, self._held = list(self._held.values()), {}
            return everybody
        present = [member for member in self._held if member in self._groups[0]]
        return [self._held.pop(member) for member in present]

    def give_up_absent(self, alive: frozenset[str]) -> None:
        """Members that neither run nor have come won't come: their clients are gone."""
        if self._groups:
            self._groups[0] &= self._held.keys() | alive
