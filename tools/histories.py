"""What one client saw of one response, over all its connections, and how it differs from the undisturbed answer."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class History:
    """What one client saw of one response, over all its connections."""

    ids: list[str] = field(default_factory=list)
    choices: dict[int, list[object]] = field(default_factory=dict)
    ends: Counter[int] = field(default_factory=Counter)
    is_done: bool = False
    trouble: str = ""

    def take(self, event_id: str, data: str) -> None:
        """One event."""
        event = json.loads(data)
        if "error" in event:
            self.trouble = event["error"]["message"]
            return
        self.ids.append(event_id)
        for choice in event["choices"]:
            pieces = self.choices.setdefault(choice["index"], [])
            pieces.append(choice["delta"].get("content") or "")
            if choice["logprobs"]:
                pieces.append([(one["token"], one["logprob"]) for one in choice["logprobs"]["content"]])
            if choice["finish_reason"]:
                self.ends[choice["index"]] += 1
                pieces.append({"end": choice["finish_reason"]})

    def answers(self) -> dict[int, tuple[str, list[object], list[object]]]:
        """Text, log-probabilities and end of each choice, however they were cut into events."""
        return {
            index: (
                "".join(piece for piece in pieces if isinstance(piece, str)),
                [entry for piece in pieces if isinstance(piece, list) for entry in piece],
                [piece["end"] for piece in pieces if isinstance(piece, dict)],
            )
            for index, pieces in self.choices.items()
        }

    def complaint(self, truth: dict[int, tuple[str, list[object], list[object]]]) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.trouble:
            return f"error event: {self.trouble}"
        if not self.is_done:
            return "lost: no [DONE]"
        if len(set(self.ids)) != len(self.ids):
            return "an event came twice"
        if any(count != 1 for count in self.ends.values()) or set(self.ends) != set(truth):
            return f"ends: {dict(self.ends)}"
        return "" if self.answers() == truth else f"other tokens than undisturbed: {difference(self.answers(), truth)}"


def difference(found: dict[int, tuple[str, list[object], list[object]]], truth: object) -> str:
    """Where they part."""
    assert isinstance(truth, dict)
    for index, (text, logprobs, ends) in sorted(found.items()):
        expected = truth.get(index, ("", [], []))
        if text != expected[0]:
            pairs = enumerate(zip(text, expected[0], strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(text), len(expected[0])))
            return (
                f"choice {index} at character {at}: {text[at - 20 : at + 20]!r}, not {expected[0][at - 20 : at + 20]!r}"
            )
        if logprobs != expected[1]:
            at = next(i for i, (a, b) in enumerate(zip(logprobs, expected[1], strict=False)) if a != b)
            return f"choice {index}: logprob {at} is {logprobs[at]}, not {expected[1][at]}"
        if ends != expected[2]:
            return f"choice {index} ends with {ends}, not {expected[2]}"
    return "a choice is missing"
