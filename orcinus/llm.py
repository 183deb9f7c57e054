"""The offline library: `LLM`, familiar to users of vLLM, over the same core and worker that the server runs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, Self, TypeGuard, cast

from tqdm import tqdm

from orcinus.core.progress import Progress
from orcinus.core.request import BeamSearch, FinishReason, Request, SamplingParams
from orcinus.engine.build import build_engine
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import engine_config
from orcinus.engine.door import Door
from orcinus.errors import InvalidRequest
from orcinus.outputs import RequestCollector, RequestOutput
from orcinus.text.chat import ChatTemplate
from orcinus.text.generation import GenerationDefaults
from orcinus.text.gguf import with_folder
from orcinus.text.tokenizer import Tokenizer
from orcinus.vectors import (
    ClassificationOutput,
    EmbeddingOutput,
    PooledOutput,
    ScoringOutput,
    VectorCollector,
    check_scorable,
    embedding,
    likeliest,
    pair_up,
    probabilities,
    similarity,
)

Prompt = str | Sequence[int]
Pair = tuple[str, str]
Message = Mapping[str, object]
# A bar for fewer answers than this would only flicker.
_BAR_FROM = 8


class Collector(Protocol):
    """Takes what comes of one request, until it has all."""

    @property
    def finished(self) -> bool:
        """Nothing more is to come."""
        ...

    def take(self, progress: Progress, now: float) -> None:
        """Add one progress."""
        ...


class LLM:
    """A model that answers in this process.

    Args:
        model: folder of a Hugging Face checkpoint, or a GGUF file.
        seed: of the seeds drawn for requests that bring none.
        options: see `EngineConfig`; an unknown one is an error that names the nearest.

    Raises:
        ConfigurationError, CheckpointError, MemoryPlanError: it can't be started; the message says what to do.
    """

    def __init__(self, model: str | Path, *, seed: int = 0, **options: object) -> None:
        config = engine_config({"model": with_folder(str(model)), **options})
        self._clock = MonotonicClock()
        self._engine, self.engine_description = build_engine(config, self._clock)
        self.tokenizer = Tokenizer.load(Path(config.model))
        self._chat_template = ChatTemplate.of(self.tokenizer)
        self._default_params = GenerationDefaults.load(Path(config.model)).params()
        self._door = Door(self.engine_description, random.Random(seed))
        self._num_requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer each prompt; outputs come in the order of the prompts.

        Args:
            prompts: a text, a list of token ids, or a list of either.
            params: one for all, or one a prompt; without any, what the checkpoint recommends.

        Raises:
            InvalidRequest: a prompt or parameter that can't be served; nothing has run then.
            RequestFailed: a request ended in an error; the others are ended too.
        """
        texts = _as_list(prompts)
        return self._generate(texts, self._one_each(params, len(texts)), None, use_tqdm)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        beam_width: int,
        max_tokens: int | None = 16,
        *,
        n: int | None = None,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        min_tokens: int = 0,
        ignore_eos: bool = False,
        stop_token_ids: list[int] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """The likeliest answers that keeping `beam_width` beginnings finds, best first, each with its `score`.

        Args:
            n: answers wanted of each search; None wants as many as there are beams.
            length_penalty, early_stopping: see `BeamSearch`; the other arguments are those of `SamplingParams`.

        Raises:
            InvalidRequest, RequestFailed: as `generate`.
        """
        search = BeamSearch(width=beam_width, length_penalty=length_penalty, early_stopping=early_stopping)
        params = SamplingParams(
            n=beam_width if n is None else n,
            temperature=0,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            ignore_eos=ignore_eos,
            stop_token_ids=stop_token_ids,
            logprobs=0,
        )
        texts = _as_list(prompts)
        return self._generate(texts, [params] * len(texts), search, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, through the checkpoint's chat template."""
        if self._chat_template is None or self.tokenizer is None:
            raise InvalidRequest("this checkpoint has no chat template; use generate", param="messages")
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            self.tokenizer.encode(
                self._chat_template.render(
                    cast("Sequence[Message]", conversation), add_generation_prompt=add_generation_prompt
                ),
                add_special_tokens=False,
            )
            for conversation in several
        ]
        return self.generate(prompts, params, use_tqdm=use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        use_tqdm: bool = True,
    ) -> list[PooledOutput[EmbeddingOutput]]:
        """One vector for each text: its states, made one as the checkpoint says (`ModelShape.pooling`).

        Args:
            dimensions: the first so many elements only, for models trained so.
            normalize: scale to length 1.

        Raises:
            InvalidRequest, RequestFailed: as `generate`.
        """
        collectors = self._pool([self._input(prompt) for prompt in _as_list(prompts)], use_tqdm)
        vectors = [embedding(each.vector, dimensions, normalize=normalize) for each in collectors]
        return [each.output(EmbeddingOutput(vector.tolist())) for each, vector in zip(collectors, vectors, strict=True)]

    def classify(
        self, prompts: Prompt | Pair | Sequence[Prompt | Pair], *, use_tqdm: bool = True
    ) -> list[PooledOutput[ClassificationOutput]]:
        """Probabilities of the checkpoint's labels, for each text or pair of texts (a tuple).

        Raises:
            InvalidRequest: also where the checkpoint has no classifier.
            RequestFailed: as `generate`.
        """
        labels = self.engine_description.labels
        inputs = [self._input(prompt) for prompt in _as_inputs(prompts)]
        collectors = self._pool(inputs, use_tqdm, classify=True)
        probs = [probabilities(each.vector) for each in collectors]
        return [
            each.output(ClassificationOutput(shares, likeliest(shares, labels)))
            for each, shares in zip(collectors, probs, strict=True)
        ]

    def score(
        self, first: str | Sequence[str], second: str | Sequence[str], *, use_tqdm: bool = True
    ) -> list[PooledOutput[ScoringOutput]]:
        """How well texts belong together: one against one, one against many, or pairwise.

        A checkpoint with a classifier of one label reads each pair (cross-encoder); any other model compares the
        embeddings of the two.

        Raises:
            InvalidRequest: lists of different lengths, a classifier of several labels.
            RequestFailed: as `generate`.
        """
        pairs = pair_up(first, second)
        check_scorable(self.engine_description.labels)
        if self.engine_description.labels:
            collectors = self._pool([self._input(pair) for pair in pairs], use_tqdm, classify=True)
            return [each.output(ScoringOutput(probabilities(each.vector)[0])) for each in collectors]
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        collected = dict(zip(texts, self._pool([self._input(text) for text in texts], use_tqdm), strict=True))
        return [
            collected[b].output(ScoringOutput(similarity(collected[a].vector, collected[b].vector))) for a, b in pairs
        ]

    def close(self) -> None:
        """Let the worker go."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], beams: BeamSearch | None, use_tqdm: bool
    ) -> list[RequestOutput]:
        collectors: dict[str, RequestCollector] = {}
        requests = []
        for prompt, own_params in zip(prompts, params, strict=True):
            request = self._request(prompt, own_params, beams)
            text = prompt if isinstance(prompt, str) else None
            collectors[request.request_id] = self._collector(request, text)
            requests.append(request)
        self._run(requests, collectors, use_tqdm)
        return [collector.output for collector in collectors.values()]

    def _request(self, prompt: Prompt, params: SamplingParams, beams: BeamSearch | None) -> Request:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InvalidRequest("this checkpoint has no tokenizer; give token ids", param="prompt")
            prompt = self.tokenizer.encode(prompt, add_special_tokens=True)
        if params.stop_strings and (self.tokenizer is None or not params.detokenize):
            raise InvalidRequest("stop strings need text, so a tokenizer and detokenize=True", param="stop")
        self._num_requests += 1
        name = f"llm-{self._num_requests}"
        return self._door.admit(name, prompt, params, arrived_at=self._clock.now(), beams=beams)

    def _input(self, prompt: Prompt | Pair) -> tuple[Sequence[int], int]:
        """Token ids of a text or pair, and where the second text begins."""
        if not isinstance(prompt, str) and not _is_pair(prompt):
            return cast("Sequence[int]", prompt), 0
        if self.tokenizer is None:
            raise InvalidRequest("this checkpoint has no tokenizer; give token ids", param="prompt")
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special_tokens=True), 0
        return self.tokenizer.encode_pair(*prompt)

    def _pool(
        self, inputs: Sequence[tuple[Sequence[int], int]], use_tqdm: bool, *, classify: bool = False
    ) -> list[VectorCollector]:
        collectors = []
        for tokens, second_segment in inputs:
            self._num_requests += 1
            request = self._door.admit_pooling(
                f"llm-{self._num_requests}",
                tokens,
                classify=classify,
                second_segment=second_segment,
                arrived_at=self._clock.now(),
            )
            collectors.append(VectorCollector(request))
        by_id = {each.request.request_id: each for each in collectors}
        self._run([each.request for each in collectors], by_id, use_tqdm)
        return collectors

    def _one_each(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or self._default_params] * count
        if len(params) != count:
            raise InvalidRequest(
                f"{len(params)} sampling parameters for {count} prompts; give one, or one each", param="params"
            )
        return list(params)

    def _collector(self, request: Request, text: str | None) -> RequestCollector:
        def end(index: int) -> None:
            self._engine.abort(request.request_id, index, FinishReason.STOP)

        return RequestCollector(request, text, self.tokenizer, end)

    def _run(self, requests: Sequence[Request], collectors: Mapping[str, Collector], use_tqdm: bool) -> None:
        hidden = not use_tqdm or len(requests) < _BAR_FROM
        try:
            with tqdm(total=len(requests), unit="request", disable=hidden, dynamic_ncols=True) as bar:
                for request in requests:
                    self._deliver(self._engine.add(request), collectors, bar)
                while (progress := self._engine.step()) is not None:
                    self._deliver(progress, collectors, bar)
        finally:
            # After an error or Ctrl-C nothing of this call may go on in the next one.
            for request in requests:
                self._engine.abort(request.request_id)

    def _deliver(self, several: Sequence[Progress], collectors: Mapping[str, Collector], bar: tqdm[object]) -> None:
        for progress in several:
            collector = collectors[progress.request_id]
            was_finished = collector.finished
            collector.take(progress, self._clock.now())
            if collector.finished and not was_finished:
                bar.update()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [cast("Prompt", prompts)]
    return list(cast("Sequence[Prompt]", prompts))


def _as_inputs(prompts: Prompt | Pair | Sequence[Prompt | Pair]) -> list[Prompt | Pair]:
    if _is_pair(prompts):
        return [prompts]
    return list(_as_list(cast("Prompt | Sequence[Prompt]", prompts)))


def _is_pair(prompts: object) -> TypeGuard[Pair]:
    return isinstance(prompts, tuple) and len(prompts) == 2 and all(isinstance(text, str) for text in prompts)
