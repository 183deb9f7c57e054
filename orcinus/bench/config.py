"""What a user chooses about an online benchmark, checked once. Light to import: the command line reads it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from orcinus.bench.asks import EndpointKind
from orcinus.errors import ConfigurationError

DatasetName = Literal["random", "jsonl", "trace", "W1", "W2", "W3", "W4"]
ArrivalsName = Literal["poisson", "gamma", "trace"]


@dataclass(frozen=True)
class OnlineConfig:
    """What `orcinus bench online` is told.

    Args:
        base_url: address of the server, with or without /v1.
        model: name to ask for; without it, the first that the server lists.
        endpoint: completions sends token ids (random, W1 to W4, trace), chat sends texts of about as many tokens.
        dataset: random; jsonl (lines with "prompt" or "messages", "output_tokens" if they like); trace (Mooncake's
            JSON lines or Azure's CSV); or one of the workloads W1 to W4.
        dataset_path: file of jsonl and trace.
        num_prompts: how many requests; without it all that the dataset has, of random ones 100.
        request_rate: mean requests a second; inf sends all at once.
        burstiness: shape of the Gamma-distributed gaps: 1 is Poisson, less is burstier.
        arrivals: poisson, gamma (with --burstiness) or trace (the trace's own instants, stretched to --request-rate
            if that is given); without it trace for a trace without a rate, else gamma.
        max_concurrency: most requests out at a time. The loop isn't open any more, and the table says so.
        input_len: tokens of a random prompt, their median if --input-sigma is given.
        output_len: tokens of a random answer, their median if --output-sigma is given.
        input_sigma: spread of the log-normal prompt lengths; 0 makes all equal.
        output_sigma: spread of the log-normal answer lengths.
        tokenizer: folder with a tokenizer.json: chat prompts then have exactly the lengths asked for, and random ids
            stay below its vocabulary.
        vocab_size: random ids stay below it.
        seed: of prompts, lengths and arrivals.
        percentiles: which ones, with commas.
        ignore_eos: answers go on to their full length; vLLM's extension, which most engines know.
        temperature: 0 always takes the likeliest token.
        timeout: seconds for one answer.
    """

    _: KW_ONLY
    base_url: str = "http://127.0.0.1:8000"
    model: str | None = None
    endpoint: EndpointKind = "completions"
    dataset: DatasetName = "random"
    dataset_path: Path | None = None
    num_prompts: int | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    arrivals: ArrivalsName | None = None
    max_concurrency: int | None = None
    input_len: int = 128
    output_len: int = 128
    input_sigma: float = 0.0
    output_sigma: float = 0.0
    tokenizer: Path | None = None
    vocab_size: int = 30_000
    seed: int = 0
    percentiles: str = "50,90,95,99"
    ignore_eos: bool = False
    temperature: float = 0.0
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise ConfigurationError(f"{_flag(name)} is {value}; it must be at least {lowest}")
        for name in ("request_rate", "burstiness", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{_flag(name)} is {value}; it must be above 0")
        if (self.dataset in ("jsonl", "trace")) != (self.dataset_path is not None):
            raise ConfigurationError(
                "--dataset-path is the file of --dataset jsonl and --dataset trace, and of no other"
            )
        if self.arrivals == "trace" and self.dataset != "trace":
            raise ConfigurationError("--arrivals trace needs --dataset trace")
        if self.arrivals in ("poisson", "trace") and self.burstiness != 1:
            raise ConfigurationError(f"--burstiness {self.burstiness} needs --arrivals gamma")

    @property
    def from_trace(self) -> bool:
        """Whether requests arrive as the trace's did."""
        chosen = self.arrivals is None and self.request_rate is None and self.dataset == "trace"
        return chosen or self.arrivals == "trace"

    @property
    def percentile_list(self) -> tuple[float, ...]:
        """The numbers of --percentiles.

        Raises:
            ConfigurationError: no numbers, or none between 0 and 100.
        """
        try:
            numbers = tuple(float(part) for part in self.percentiles.split(","))
        except ValueError as error:
            raise ConfigurationError(f"--percentiles is {self.percentiles!r}; give numbers, as 50,90,99") from error
        if not all(0 <= number <= 100 for number in numbers):
            raise ConfigurationError(f"--percentiles is {self.percentiles!r}; each must be between 0 and 100")
        return numbers


_LOWEST = {
    "num_prompts": 1,
    "max_concurrency": 1,
    "input_len": 1,
    "output_len": 1,
    "input_sigma": 0,
    "output_sigma": 0,
    "vocab_size": 11,
    "temperature": 0,
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
