"""Requests to ask: random ones, W1 to W4, a trace's, or a file's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orcinus.bench.asks import Ask, Message, Prompt
from orcinus.bench.files import numbered_lines
from orcinus.bench.traces import MOONCAKE_BLOCK, TraceEntry, read_trace
from orcinus.bench.workloads import lognormal_length, random_ids, workload
from orcinus.errors import ConfigurationError
from orcinus.text.tokenizer import Tokenizer

_LONGEST = 2**20
# Short and common, so that most vocabularies have each as one token with its space.
_VOCABULARY = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea kid body back "
)
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Requests in order.

    Args:
        prompt_lengths: tokens that each prompt was made to have; None where only the server knows.
        instants: a trace's own arrivals, seconds from its first.
    """

    asks: list[Ask]
    prompt_lengths: list[int] | None = None
    instants: list[float] | None = None

    def first(self, count: int | None) -> Dataset:
        """The first `count`, or all.

        Raises:
            ConfigurationError: there aren't so many; repeats would be answered from the prefix cache.
        """
        if count is None:
            return self
        if count > len(self.asks):
            raise ConfigurationError(f"--num-prompts is {count}; the dataset has {len(self.asks)}")
        return Dataset(
            self.asks[:count],
            None if self.prompt_lengths is None else self.prompt_lengths[:count],
            None if self.instants is None else self.instants[:count],
        )


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal lengths around a median; sigma 0 makes them all equal."""

    input_median: int
    input_sigma: float
    output_median: int
    output_sigma: float


@dataclass(frozen=True, slots=True)
class TextMaker:
    """Turns token ids into words, for endpoints that take only text. Equal ids begin equal texts.

    Args:
        tokenizer: cuts texts to the exact number of tokens; without one, a word counts as a token.
    """

    tokenizer: Tokenizer | None

    def text(self, ids: Sequence[int]) -> str:
        """As many tokens as there are ids."""
        words = " ".join(_WORDS[token % len(_WORDS)] for token in ids)
        if self.tokenizer is None:
            return words
        tokens = self.tokenizer.encode(words, add_special_tokens=False)
        return self.tokenizer.decode(tokens[: len(ids)], skip_special_tokens=False)


def random_dataset(count: int, lengths: Lengths, vocab_size: int, seed: int, texts: TextMaker | None) -> Dataset:
    """Prompts of random tokens; the lengths don't depend on the vocabulary."""
    sizes, ids = random.Random(f"{seed}:lengths"), random.Random(f"{seed}:ids")

    def length(median: int, sigma: float) -> int:
        return lognormal_length(sizes, median, 1, _LONGEST, sigma) if sigma else median

    drawn = [
        (length(lengths.input_median, lengths.input_sigma), length(lengths.output_median, lengths.output_sigma))
        for _ in range(count)
    ]
    return _of_ids([(random_ids(ids, prompt, vocab_size), output) for prompt, output in drawn], texts)


def workload_dataset(name: str, seed: int, vocab_size: int, texts: TextMaker | None) -> Dataset:
    """W1 to W4."""
    return _of_ids([(job.prompt, job.num_output) for job in workload(name, seed, vocab_size)], texts)


def trace_dataset(file: Path, vocab_size: int, seed: int, texts: TextMaker | None) -> Dataset:
    """A trace's lengths and instants; tokens are random, but where the trace says that prompts share them.

    Raises:
        ConfigurationError: a file that can't be read.
    """
    entries = read_trace(file)
    own = random.Random(f"{seed}:ids")
    drawn = [(_trace_ids(entry, vocab_size, seed, own), max(1, entry.num_output)) for entry in entries]
    dataset = _of_ids(drawn, texts)
    return Dataset(dataset.asks, dataset.prompt_lengths, [entry.at for entry in entries])


def _trace_ids(entry: TraceEntry, vocab_size: int, seed: int, own: random.Random) -> list[int]:
    shared: list[int] = []
    for block in entry.block_ids:
        shared += random_ids(random.Random(f"{seed}:block:{block}"), MOONCAKE_BLOCK, vocab_size)
    missing = max(0, entry.num_prompt - len(shared))
    return shared[: entry.num_prompt] + random_ids(own, missing, vocab_size)


def _of_ids(drawn: Sequence[tuple[list[int], int]], texts: TextMaker | None) -> Dataset:
    def prompt(ids: list[int]) -> Prompt:
        return ids if texts is None else texts.text(ids)

    return Dataset([Ask(prompt(ids), output) for ids, output in drawn], [len(ids) for ids, _ in drawn])


class _JsonLine(msgspec.Struct):
    """One request of a file; other keys are ignored. `output_tokens` as in vLLM's custom datasets."""

    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    output_tokens: int | None = None


def jsonl_dataset(file: Path, output_len: int, *, chat: bool) -> Dataset:
    """A request a line.

    Args:
        output_len: for lines that name no output_tokens.

    Raises:
        ConfigurationError: a file or line that can't be used; the message names the line.
    """
    decoder = msgspec.json.Decoder(_JsonLine)
    asks = []
    for number, line in numbered_lines(file):
        try:
            asks.append(_ask(decoder.decode(line), output_len, chat=chat))
        except (msgspec.DecodeError, ConfigurationError) as error:
            raise ConfigurationError(f"{file}, line {number}: {error}") from error
    return Dataset(asks)


def _ask(line: _JsonLine, output_len: int, *, chat: bool) -> Ask:
    if (line.prompt is None) == (line.messages is None):
        raise ConfigurationError('give either "prompt" or "messages"')
    if line.messages is not None and not chat:
        raise ConfigurationError('"messages" need --endpoint chat')
    if chat and isinstance(line.prompt, list):
        raise ConfigurationError("token ids need --endpoint completions")
    prompt: Prompt | None = line.prompt if line.messages is None else line.messages
    if not prompt:
        raise ConfigurationError("the prompt is empty")
    return Ask(prompt, output_len if line.output_tokens is None else line.output_tokens)
