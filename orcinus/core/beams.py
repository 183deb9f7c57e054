"""Beam search as a decision: which continuations of a request's beams go on, which are answers, and when it is over.

The rules are those of transformers' `num_beams`, so that an answer can be checked against it. Equal scores go to the
lower beam, then to the lower token id. Nothing here knows blocks or plans; `core/gang.py` carries the choices out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orcinus.core.plan import TokenLogprobs
from orcinus.core.request import FinishReason, Request


def score(logprob: float, num_tokens: int, length_penalty: float) -> float:
    """What answers are compared by: the sum of their tokens' log-probabilities, over their length to a power."""
    divisor: float = num_tokens**length_penalty
    return logprob / divisor


class _Link(NamedTuple):
    """A token behind others. Beams with a common beginning share its links."""

    before: _Link | None
    token: int
    logprobs: TokenLogprobs


class _Line(NamedTuple):
    """A beam: the log-probability of all its tokens, and the last of them."""

    total: float
    last: _Link | None


class _Candidate(NamedTuple):
    """A beam and one more token. They sort by falling `total`, then by beam, then by place in its list."""

    fall: float
    parent: int
    place: int
    token: int

    @property
    def total(self) -> float:
        """Log-probability of all its tokens."""
        return -self.fall


class Move(NamedTuple):
    """The beam in `slot` goes on as the one in `parent` was, with `token`; `is_sampled`: as its worker expects."""

    slot: int
    parent: int
    token: int
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that was found, and how it ended."""

    score: float
    last: _Link
    reason: FinishReason

    def read(self) -> tuple[tuple[int, ...], tuple[TokenLogprobs, ...]]:
        """Its tokens, and what is known of each."""
        links = []
        link: _Link | None = self.last
        while link is not None:
            links.append(link)
            link = link.before
        links.reverse()
        return tuple(link.token for link in links), tuple(link.logprobs for link in links)


class Beams:
    """The beams of one request, each in a slot: the place of its sequence in the group. It begins with one, in slot 0.

    Attributes:
        answers: found so far, at most as many as the search is wide, the best first.
    """

    def __init__(self, request: Request) -> None:
        assert request.beams is not None
        self._search = request.beams
        self._ends = request.end_token_ids
        self._min_tokens = request.params.min_tokens
        self._max_tokens = request.max_tokens
        self._num_told = request.params.logprobs or 0
        self._lines = {0: _Line(0.0, None)}
        self._found: dict[int, TokenLogprobs] = {}
        self._sampled: dict[int, int] = {}
        self._length = 0
        self.answers: list[Answer] = []

    def runs(self, slot: int) -> bool:
        """A beam is there."""
        return slot in self._lines

    def offer(self, slot: int, sampled: int, found: TokenLogprobs) -> None:
        """The likeliest tokens behind the beam in `slot`; its worker goes on with the one it `sampled` unless told."""
        self._found[slot] = found
        self._sampled[slot] = sampled

    def withdraw(self) -> None:
        """The KV behind what was offered is gone; it will be offered again."""
        self._found.clear()

    @property
    def is_complete(self) -> bool:
        """Every beam's continuations are known."""
        return len(self._found) == len(self._lines)

    def choose(self) -> list[Move]:
        """The next token of each beam. No moves: the search is over, and `answers` are what it found."""
        width = self._search.width
        self._length += 1
        candidates = self._candidates()
        is_last = self._length >= self._max_tokens
        for each in candidates[:width]:
            if is_last or each.token in self._ends:
                self._keep(each)
        going = [] if is_last else [each for each in candidates if each.token not in self._ends][:width]
        if self._is_over(going):
            return []
        moves = self._placed(going)
        self._lines = {move.slot: _Line(each.total, self._link(each)) for move, each in zip(moves, going, strict=True)}
        self._found.clear()
        return moves

    def _candidates(self) -> list[_Candidate]:
        """Best first. An end token before its time is none."""
        too_early = self._ends if self._length <= self._min_tokens else frozenset()
        return sorted(
            _Candidate(-(self._lines[slot].total + logprob), slot, place, token)
            for slot, found in self._found.items()
            for place, (token, logprob) in enumerate(zip(found.top_ids, found.top_logprobs, strict=True))
            if token not in too_early
        )

    def _keep(self, ended: _Candidate) -> None:
        """One answer more; of equals the elder is kept."""
        reason = FinishReason.STOP if ended.token in self._ends else FinishReason.LENGTH
        value = score(ended.total, self._length, self._search.length_penalty)
        self.answers.append(Answer(value, self._link(ended), reason))
        self.answers.sort(key=lambda answer: -answer.score)
        del self.answers[self._search.width :]

    def _is_over(self, going: Sequence[_Candidate]) -> bool:
        """Nothing goes on, or enough is found and, as `early_stopping` sees it, nothing better can come."""
        if not going:
            return True
        if len(self.answers) < self._search.width:
            return False
        early, penalty = self._search.early_stopping, self._search.length_penalty
        length = self._max_tokens if early == "never" and penalty > 0 else self._length
        return early is True or score(going[0].total, length, penalty) <= self.answers[-1].score

    def _link(self, each: _Candidate) -> _Link:
        found = self._found[each.parent]
        value = found.top_logprobs[each.place]
        rank = sum(other >= value for other in found.top_logprobs)
        told = self._num_told
        logprobs = TokenLogprobs(value, rank, found.top_ids[:told], found.top_logprobs[:told])
        return _Link(self._lines[each.parent].last, each.token, logprobs)

    def _placed(self, going: Sequence[_Candidate]) -> list[Move]:
        """A beam's likeliest continuation stays in its slot; the others take the slots of beams that have none."""
        parents = {each.parent for each in going}
        free = iter([slot for slot in range(self._search.width) if slot not in parents])
        moves = []
        for each in going:
            stays = each.parent in parents
            parents.discard(each.parent)
            slot = each.parent if stays else next(free)
            moves.append(Move(slot, each.parent, each.token, stays and each.token == self._sampled[each.parent]))
        return moves
