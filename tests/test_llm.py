"""The offline library: vLLM's shape, `transformers`' tokens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from orcinus import LLM, AsyncLLM, SamplingParams
from orcinus.errors import ConfigurationError, InvalidRequest, MemoryPlanError

pytestmark = pytest.mark.slow
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model with a byte-level tokenizer and a chat template beside it."""
    folder = tmp_path_factory.mktemp("with-tokenizer")
    for file in random_llama.iterdir():
        (folder / file.name).symlink_to(file)
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["orcas hunt together and share what they catch"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(checkpoint, dtype="float32", max_model_len=256, max_batch_tokens=128, kv_cache_gib=0.05) as llm:
        yield llm


def greedy_by_transformers(checkpoint: Path, prompt: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def test_texts_and_token_ids_give_the_tokens_of_transformers(llm: LLM, checkpoint: Path) -> None:
    ids = [5, 9, 300, 77]
    outputs = llm.generate(["orcas share", ids], GREEDY)
    assert outputs[0].prompt == "orcas share"
    assert outputs[1].prompt is None
    assert outputs[1].prompt_token_ids == ids
    for output in outputs:
        answer = output.outputs[0]
        assert answer.token_ids == greedy_by_transformers(checkpoint, output.prompt_token_ids, 12)
        assert answer.finish_reason == "length"
        assert llm.tokenizer is not None
        assert answer.text == llm.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        assert output.finished
        assert output.metrics.ttft is not None
        assert output.metrics.finished_at is not None
        assert output.metrics.finished_at >= output.metrics.arrived_at + output.metrics.ttft


def test_one_prompt_needs_no_list_and_params_may_be_one_each(llm: LLM) -> None:
    assert len(llm.generate([5, 6, 7], GREEDY)) == 1
    lengths = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (3, 9)]
    outputs = llm.generate([[5], [6]], lengths)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 9]
    with pytest.raises(InvalidRequest, match="2 sampling parameters for 1"):
        llm.generate([[5]], lengths)


def test_chat_renders_the_template_of_transformers(llm: LLM, checkpoint: Path) -> None:
    messages = [{"role": "user", "content": "share"}]
    output = llm.chat(messages, GREEDY)[0]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert output.prompt_token_ids == list(expected["input_ids"] if not isinstance(expected, list) else expected)
    assert [o.outputs[0].token_ids for o in llm.chat([messages, messages], GREEDY)] == [output.outputs[0].token_ids] * 2


def test_logprobs_are_those_of_a_softmax_over_transformers_logits(llm: LLM, checkpoint: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    output = llm.generate([[5, 9, 300, 77]], params)[0]
    answer = output.outputs[0]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([[*output.prompt_token_ids, *answer.token_ids]])).logits[0]
    expected = torch.log_softmax(logits.double(), dim=-1)
    assert answer.logprobs is not None
    for position, (token, entries) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True), start=3):
        assert set(entries) == set(expected[position].topk(3).indices.tolist())
        assert entries[token].logprob == pytest.approx(float(expected[position, token]), abs=1e-4)
        assert entries[token].rank == 1
    assert answer.cumulative_logprob == pytest.approx(
        sum(float(expected[3 + i, token]) for i, token in enumerate(answer.token_ids)), abs=1e-3
    )
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    for position, token in enumerate(output.prompt_token_ids[1:]):
        entries = output.prompt_logprobs[position + 1]
        assert entries is not None
        assert entries[token].logprob == pytest.approx(float(expected[position, token]), abs=1e-4)


def test_a_stop_string_ends_the_text_before_it_and_frees_the_blocks(llm: LLM) -> None:
    letters = list(range(35, 85))  # single-byte tokens, so that the random model writes something
    params = SamplingParams(temperature=1, seed=3, max_tokens=12, ignore_eos=True, allowed_token_ids=letters)
    whole = llm.generate("orcas", params)[0].outputs[0].text
    assert len(whole) == 12
    stop = whole[5:8]
    answer = llm.generate("orcas", msgspec.structs.replace(params, stop=stop))[0].outputs[0]
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]


def test_n_answers_are_drawn_apart_and_a_seed_repeats_them(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, max_tokens=8, seed=5)
    first, second = llm.generate([[5, 6]], params)[0], llm.generate([[5, 6]], params)[0]
    assert len({tuple(answer.token_ids) for answer in first.outputs}) == 3
    assert [a.token_ids for a in first.outputs] == [a.token_ids for a in second.outputs]


@pytest.mark.parametrize(
    ("prompt", "params", "complaint"),
    [
        ([], GREEDY, "empty"),
        ([5000], GREEDY, "outside 0..1002"),
        ([5] * 250, GREEDY, "maximum context length is 256"),
        ([5], SamplingParams(stop_token_ids=[1003], max_tokens=2), "stop_token_ids"),
        ([5], SamplingParams(n=65, max_tokens=2), "n is 65"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_by_name(llm: LLM, prompt, params, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        llm.generate([prompt], params)
    assert llm.generate([[5]], GREEDY)[0].finished


def test_unknown_options_name_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'max_batch_size'"):
        LLM(checkpoint, max_batchsize=3)
    with pytest.raises(ConfigurationError, match="max_batch_tokens"):
        LLM(checkpoint, max_batch_tokens=8, max_batch_size=64)


def test_a_pool_too_small_for_one_longest_request_names_the_size_that_fits(checkpoint: Path) -> None:
    with pytest.raises(MemoryPlanError, match=r"kv_cache_gib=(\d+\.\d+), or max_model_len=\d+") as refusal:
        LLM(checkpoint, dtype="float32", kv_cache_gib=0.002)
    size = float(str(refusal.value).split("kv_cache_gib=")[1].split(",")[0])
    with LLM(checkpoint, dtype="float32", kv_cache_gib=size + 0.0005, max_batch_tokens=64) as llm:
        assert llm.engine_description.max_sequence_tokens == 2048


def test_a_checkpoint_without_tokenizer_serves_token_ids(random_llama: Path) -> None:
    with LLM(random_llama, max_model_len=64, max_batch_tokens=64, kv_cache_gib=0.01) as llm:
        output = llm.generate([[5, 6]], GREEDY)[0].outputs[0]
        assert (len(output.token_ids), output.text) == (12, "")
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            llm.generate("text", GREEDY)


def test_async_answers_grow_and_leaving_early_ends_them(checkpoint: Path, llm: LLM) -> None:
    async def run() -> None:
        options = {"dtype": "float32", "max_model_len": 256, "max_batch_tokens": 128, "kv_cache_gib": 0.05}
        async with AsyncLLM(checkpoint, **options) as engine:
            lengths = []
            async for output in engine.generate([5, 6, 7], GREEDY, "a"):
                lengths.append(len(output.outputs[0].token_ids))
            assert lengths == sorted(lengths)
            assert output.outputs[0].token_ids == llm.generate([[5, 6, 7]], GREEDY)[0].outputs[0].token_ids
            answer = engine.generate([5], SamplingParams(max_tokens=200, ignore_eos=True), "b")
            await anext(answer)
            await answer.aclose()
            states = [output.finished async for output in engine.generate([8], GREEDY, "b")]
            assert states[-1]

    asyncio.run(run())


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, orcinus, orcinus.async_llm, orcinus.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
