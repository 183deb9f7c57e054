"""Tokens in as they are sampled, text out as soon as it is certain; ends before a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orcinus.core.progress import Progress
from orcinus.core.request import SamplingParams
from orcinus.text.tokenizer import REPLACEMENT, Tokenizer

# A character is at most 4 bytes and a token at least one, so an unfinished character spans at most 3 tokens.
_MAX_UNFINISHED_TOKENS = 3
# The first answer token is decoded after this many prompt tokens: decoders treat the start of a text specially.
PROMPT_TAIL = 6


class TextDelta(NamedTuple):
    """Text that became certain; whether a stop string ended the answer, and after how many of the pushed tokens."""

    text: str
    stopped: bool
    num_tokens_used: int


class TextStream:
    """The text of one answer. However its tokens are split over `push` calls, the text is the same.

    Args:
        tokenizer: of the checkpoint.
        prompt_tail: the last tokens of the prompt, or all of them; an answer goes on where they end.
        params: its stop strings, `min_tokens` (a stop string within these is ignored) and text options are read.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_tail: Sequence[int], params: SamplingParams) -> None:
        self._detokenizer = _Detokenizer(tokenizer, prompt_tail[-PROMPT_TAIL:], params.skip_special_tokens)
        self._stops = [_StopString(stop) for stop in params.stop_strings]
        self._keep_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._held = ""
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> TextDelta:
        """Take the next tokens of the answer; after a stop string, none are taken.

        Text that could still turn out to be (the beginning of) a stop string or of a character is held back.
        """
        parts: list[str] = []
        used = 0
        for token in tokens:
            if self.stopped:
                break
            used += 1
            self._num_tokens += 1
            parts.append(self._pass_stops(self._detokenizer.push(token)))
        return TextDelta("".join(parts), self.stopped, used)

    def finish(self) -> str:
        """The text held back, once no more tokens come. It may hold a stop string: see `stopped`."""
        if self.stopped:
            return ""
        text = self._pass_stops(self._detokenizer.flush())
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _pass_stops(self, text: str) -> str:
        """What of the held and the new text is certain. Sets `stopped` at the stop string that ends earliest."""
        if not self._stops:
            return text
        known = self._held + text
        for end in range(len(self._held) + 1, len(known) + 1):
            longest = max((stop.length for stop in self._stops if stop.feed(known[end - 1])), default=0)
            if longest and self._num_tokens > self._min_tokens:
                self.stopped, self._held = True, ""
                return known[:end] if self._keep_stop else known[: end - longest]
        certain = len(known) - max(stop.matched for stop in self._stops)
        self._held = known[certain:]
        return known[:certain]


def text_tokens(progress: Progress, params: SamplingParams) -> tuple[int, ...]:
    """The tokens of a progress that become text: the token that ended an answer is kept out, as in vLLM."""
    if progress.stop_token is None or params.include_stop_str_in_output:
        return progress.tokens
    return progress.tokens[:-1]


class _Detokenizer:
    """Incremental decoding over a window of tokens: a few already shown for context, then those not shown yet.

    Equals decoding everything at once: for byte-level vocabularies also where bytes are no characters, for those with
    byte fallback wherever they are. `tokenizers.decoders.DecodeStream` does less: it raises on some invalid bytes, and
    holds back a run of them for ever at a cost quadratic in its length, which one request could use against all.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window = [token for token in context if not tokenizer.is_silent(token, skip_special_tokens=self._skip)]
        self._num_shown = len(self._window)
        self._shown = _without_unfinished(self._decode())

    def push(self, token: int) -> str:
        """Text that this token makes certain."""
        if self._tokenizer.is_silent(token, skip_special_tokens=self._skip):
            return ""
        self._window.append(token)
        text = self._decode()
        if not text.startswith(self._shown):
            text = self._forget_context()
        new = text[len(self._shown) :]
        if new and not new.endswith(REPLACEMENT):
            self._let_go(self._num_shown)
            # All of it is shown. What is left may begin within a character, and then reads as a sign of its own.
            self._shown = self._decode()
            return new
        if len(self._window) - self._num_shown <= _MAX_UNFINISHED_TOKENS:
            return ""
        # Not one unfinished character, then: all but the last sign is final, whatever comes.
        self._let_go(len(self._window) - _MAX_UNFINISHED_TOKENS - 1)
        self._shown = _without_unfinished(self._decode())
        return new[:-1]

    def flush(self) -> str:
        """What is left when no more tokens come: signs for unfinished characters."""
        return self._decode()[len(self._shown) :]

    def _let_go(self, window_start: int) -> None:
        """Of the window's tokens before `window_start`; the rest is the next context."""
        del self._window[:window_start]
        self._num_shown = len(self._window)

    def _forget_context(self) -> str:
        """New bytes changed how the context reads (byte fallback, invalid UTF-8): it is sent, so go on without it."""
        del self._window[: self._num_shown]
        self._num_shown, self._shown = 0, ""
        return self._decode()

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skip)


def _without_unfinished(text: str) -> str:
    return text.removesuffix(REPLACEMENT)


class _StopString:
    """Knuth, Morris and Pratt's matcher: one step a character, whatever the text and the stop string."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._borders = _borders(stop)
        self.length = len(stop)
        self.matched = 0

    def feed(self, character: str) -> bool:
        """Whether the stop string ends with this character; `matched` is how much of it the text now ends with."""
        while self.matched and self._stop[self.matched] != character:
            self.matched = self._borders[self.matched - 1]
        if self._stop[self.matched] == character:
            self.matched += 1
        if self.matched < self.length:
            return False
        self.matched = self._borders[-1]
        return True


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    length = 0
    for end in range(1, len(stop)):
        while length and stop[end] != stop[length]:
            length = borders[length - 1]
        length += stop[end] == stop[length]
        borders[end] = length
    return borders
