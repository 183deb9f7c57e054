"""Models that our table lacks: `transformers` runs its own modules over the paged KV, and is the oracle as well."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from orcinus import LLM, SamplingParams
from orcinus.errors import BatchVarianceError, CheckpointError, UnknownModel
from orcinus.kernels import cpu
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models.foreign import check, masks, plug
from orcinus.models.foreign import decoder as foreign_decoder
from orcinus.models.foreign.check import checked_config
from orcinus.models.foreign.decoder import ForeignDecoder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 503,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SERVED: dict[str, Callable[[], PreTrainedModel]] = {
    "stablelm": lambda: StableLmForCausalLM(StableLmConfig(**SMALL)),
    "starcoder2": lambda: Starcoder2ForCausalLM(Starcoder2Config(**SMALL, sliding_window=9)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**SMALL)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0, attention_multiplier=0.3)),
    "cohere2": lambda: Cohere2ForCausalLM(
        Cohere2Config(
            **SMALL, logit_scale=0.7, sliding_window=9, layer_types=["sliding_attention"] * 2 + ["full_attention"]
        )
    ),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
    # Its head reads more of the body's output than the states.
    "gpt_bigcode": lambda: GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=503, n_embd=64, n_layer=3, n_head=4, n_positions=256, pad_token_id=0)
    ),
    # Keys wider than values.
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL | {"num_key_value_heads": 4},
            q_lora_rank=24,
            kv_lora_rank=32,
            qk_rope_head_dim=16,
            qk_nope_head_dim=24,
            v_head_dim=24,
            moe_intermediate_size=48,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
        )
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**SMALL, num_experts=8, moe_intermediate_size=48, shared_expert_intermediate_size=96)
    ),
}


def save(make: Callable[[], PreTrainedModel], folder: Path) -> PreTrainedModel:
    """Random weights large enough that every mechanism shows."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 1.5 * weight.shape[1] ** -0.5)
    model.tie_weights()
    model.save_pretrained(folder)
    return model


@pytest.fixture(params=SERVED)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    """A folder, and the model that wrote it."""
    return tmp_path, save(SERVED[request.param], tmp_path)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 503, (size,), generator=generator).tolist() for size in (100, 1, 33, 64, 7)]


def llm(folder: Path, **options: object) -> LLM:
    return LLM(folder, dtype="float32", threads=1, kv_cache_gib=0.02, max_model_len=192, **options)


GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, logprobs=2, prompt_logprobs=0)


def test_greedy_tokens_and_logprobs_of_a_ragged_batch_in_chunks_are_those_of_transformers(
    case: tuple[Path, PreTrainedModel],
) -> None:
    folder, model = case
    with llm(folder, max_batch_tokens=50, max_batch_size=8) as ours:
        outputs = ours.generate(prompts(), GREEDY, use_tqdm=False)
    for prompt, output in zip(prompts(), outputs, strict=True):
        answer = output.outputs[0]
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *answer.token_ids]])).logits[0]
        expected = torch.log_softmax(logits.double(), dim=-1)
        rows = expected[len(prompt) - 1 : -1]
        assert answer.token_ids == rows.argmax(-1).tolist()
        assert answer.logprobs is not None
        found = [entries[token].logprob for token, entries in zip(answer.token_ids, answer.logprobs, strict=True)]
        np.testing.assert_allclose(found, rows.max(-1).values, atol=1e-4)
        assert output.prompt_logprobs is not None
        given = [entries[token].logprob for token, entries in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]  # type: ignore[index]
        np.testing.assert_allclose(given, expected[range(len(prompt) - 1), prompt[1:]], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernels", ["reference", *(["cpu"] if cpu.available() else [])])
@pytest.mark.parametrize("name", ["starcoder2", "qwen2_moe"])
def test_bits_are_the_same_alone_crowded_and_chunked(tmp_path: Path, name: str, dtype: str, kernels: str) -> None:
    save(SERVED[name], tmp_path)
    options = {"dtype": dtype, "kernels": kernels, "threads": 1, "kv_cache_gib": 0.02, "max_model_len": 192}
    with LLM(tmp_path, **options, max_batch_tokens=256) as one:
        alone = [one.generate([prompt], GREEDY, use_tqdm=False)[0].outputs[0] for prompt in prompts()]
        crowd = [output.outputs[0] for output in one.generate(prompts(), GREEDY, use_tqdm=False)]
        embedded = one.embed(prompts(), use_tqdm=False)
        assert [e.outputs for e in embedded] == [one.embed([p], use_tqdm=False)[0].outputs for p in prompts()]
    with LLM(tmp_path, **options, max_batch_tokens=19, max_batch_size=5) as other:
        chunked = [output.outputs[0] for output in other.generate(prompts(), GREEDY, use_tqdm=False)]
    for mine in (crowd, chunked):
        assert [(a.token_ids, a.logprobs) for a in mine] == [(a.token_ids, a.logprobs) for a in alone]


def test_it_is_announced_and_has_a_fingerprint_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(SERVED["olmo2"], tmp_path)
    decoder = ForeignDecoder.load(tmp_path, dtype=torch.float32, device=CPU, kernels=ReferenceKernels())
    assert "Olmo2ForCausalLM" in decoder.notice
    assert "slower" in decoder.notice
    with llm(tmp_path) as ours:
        assert "transformers-" in ours.engine_description.fingerprint


def test_one_of_our_own_families_runs_this_way_only_when_asked(random_llama: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with llm(random_llama, model_impl="transformers") as foreign, llm(random_llama) as own:
        assert "transformers-" in foreign.engine_description.fingerprint
        assert "transformers-" not in own.engine_description.fingerprint
        prompt = list(range(5, 60))
        assert foreign.generate([prompt], params)[0].outputs[0].token_ids == (
            own.generate([prompt], params)[0].outputs[0].token_ids
        )


def test_two_of_them_live_in_one_process(tmp_path: Path) -> None:
    for name in ("phi", "olmo2"):
        save(SERVED[name], tmp_path / name)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with llm(tmp_path / "phi") as phi, llm(tmp_path / "olmo2") as olmo:
        first = [each.generate(prompts(), params, use_tqdm=False) for each in (phi, olmo)]
        second = [each.generate(prompts(), params, use_tqdm=False) for each in (olmo, phi)][::-1]
    tokens = [[[output.outputs[0].token_ids for output in run] for run in runs] for runs in (first, second)]
    assert tokens[0] == tokens[1]
    assert tokens[0][0] != tokens[0][1]


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "alibi": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=503, hidden_size=64, n_layer=3, n_head=4)),
        "BloomForCausalLM .* its attention can't be replaced",
    ),
    "alibi of another kind": (
        lambda: MptForCausalLM(MptConfig(vocab_size=503, d_model=64, n_layers=2, n_heads=4)),
        "MptForCausalLM .* its attention can't be replaced",
    ),
    "recurrent": (
        lambda: MambaForCausalLM(MambaConfig(vocab_size=503, hidden_size=64, num_hidden_layers=3)),
        "MambaForCausalLM .* layer 0 is of the type linear_attention",
    ),
    "recurrent, and doesn't say so by layer": (
        lambda: RwkvForCausalLM(RwkvConfig(vocab_size=503, hidden_size=64, num_hidden_layers=2)),
        "RwkvForCausalLM .* a recurrent state",
    ),
    "hybrid": (
        lambda: Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["full_attention", "conv", "full_attention"])),
        "Lfm2ForCausalLM .* layer 1 is of the type conv",
    ),
    "chunks": (
        lambda: Llama4ForCausalLM(
            Llama4TextConfig(**SMALL, intermediate_size_mlp=96, num_local_experts=2, head_dim=16)
        ),
        "Llama4ForCausalLM .* layer 0 is of the type chunked_attention",
    ),
    "attention chosen from a list": (
        lambda: FalconForCausalLM(
            FalconConfig(vocab_size=503, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
        ),
        "FalconForCausalLM .* its attention can't be replaced",
    ),
    "a window that only the mask knows": (
        lambda: PhimoeForCausalLM(PhimoeConfig(**SMALL, num_local_experts=4, sliding_window=200)),
        r"the mask of layer \d hides other keys than its attention is told \(no window\)",
    ),
    "attention twice in a layer": (
        lambda: DiffLlamaForCausalLM(DiffLlamaConfig(**SMALL)),
        "a layer calls its attention more than once",
    ),
    "positions counted otherwise": (
        lambda: RobertaForCausalLM(
            RobertaConfig(
                **{key: value for key, value in SMALL.items() if key != "num_key_value_heads"}, is_decoder=True
            )
        ),
        "gives other states over a paged KV",
    ),
    "attention sinks": (
        lambda: GptOssForCausalLM(GptOssConfig(**SMALL, num_local_experts=4, head_dim=16)),
        "its attention takes s_aux",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_work_is_refused_with_the_reason(tmp_path: Path, why: str) -> None:
    make, reason = REFUSED[why]
    save(make, tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        LLM(tmp_path, dtype="float32")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "reason"), [("missing", "1 tensors are missing"), ("extra", "1 tensors have no place")]
)
def test_weights_that_do_not_match_the_model_are_refused_not_made_up(tmp_path: Path, change: str, reason: str) -> None:
    save(SERVED["olmo2"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    else:
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.ones(64)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{reason}.*model.layers.1"):
        LLM(tmp_path)


def test_weights_only_as_pickle_are_never_read(tmp_path: Path) -> None:
    model = save(SERVED["olmo2"], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only as pickle"):
        LLM(tmp_path)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(SERVED["olmo2"], tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError):
        checked_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"orcinus-llm\[transformers\]"):
        LLM(tmp_path, model_impl="transformers")


def test_a_head_that_calls_a_part_of_its_body_gives_its_own_logits(
    saved: Callable[[str], tuple[Path, PreTrainedModel]],
) -> None:
    """OPT's head calls the decoder inside the body, so passing over the body alone would run it on no tokens."""
    folder, model = saved("opt")
    prompt, params = list(range(5, 60)), SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with llm(folder, model_impl="transformers") as ours:
        found = ours.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *found]])).logits[0]
    assert found == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_a_model_made_for_few_positions_is_checked_within_them(tmp_path: Path) -> None:
    sizes = {"vocab_size": 503, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 34}
    save(lambda: GPTBigCodeForCausalLM(GPTBigCodeConfig(**sizes)), tmp_path)
    with LLM(tmp_path, dtype="float32", threads=1, kv_cache_gib=0.02) as ours:
        assert ours.generate([[5, 6]], SamplingParams(max_tokens=2))[0].finished


def test_attention_that_asks_for_more_while_serving_than_at_load_stops_loudly(tmp_path: Path) -> None:
    save(SERVED["phi"], tmp_path)
    decoder = ForeignDecoder.load(tmp_path, dtype=torch.float32, device=CPU, kernels=ReferenceKernels())
    tokens = torch.arange(5)
    kv, tables = plug.fresh_kv(decoder._foreign.model, decoder.shape, 1)
    ((_, tile),) = plug.tiles(plug.batch_of([(tokens, 0)], tables), kv)
    decoder._foreign.plug.tile = tile
    layer = decoder._foreign.model.model.layers[0].self_attn
    heads = torch.zeros(1, 4, plug.TILE, 16)
    with pytest.raises(CheckpointError, match="gave its attention s_aux, unlike at load"):
        plug.attend(layer, heads, heads[:, :2], heads[:, :2], None, s_aux=torch.zeros(4))


def test_an_encoder_with_a_decoder_is_refused_by_name(tmp_path: Path) -> None:
    T5ForConditionalGeneration(T5Config(vocab_size=503, d_model=64, num_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="t5 is no causal language model"):
        LLM(tmp_path)
    with pytest.raises(UnknownModel, match="T5ForConditionalGeneration"):
        LLM(tmp_path, model_impl="orcinus")
    with pytest.raises(CheckpointError, match="no causal language model"):
        LLM(tmp_path, model_impl="transformers")


def test_rotation_by_the_longest_of_a_batch_is_refused(tmp_path: Path) -> None:
    save(lambda: StableLmForCausalLM(StableLmConfig(**SMALL)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="rope type dynamic"):
        LLM(tmp_path)


def test_experts_of_its_own_making_break_the_promise_and_start_only_on_demand(tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": 2, "kv_channels": 16, "num_local_experts": 16, "num_experts_per_tok": 2}
    general = {key: value for key, value in SMALL.items() if key not in ("num_attention_heads", *sizes)}
    save(
        lambda: JetMoeForCausalLM(JetMoeConfig(**general | {"hidden_size": 256, "intermediate_size": 512}, **sizes)),
        tmp_path,
    )
    with pytest.raises(BatchVarianceError, match="--allow-batch-variance"):
        llm(tmp_path)
    with llm(tmp_path, allow_batch_variance=True) as ours:
        assert ours.generate([[5, 6]], SamplingParams(max_tokens=2))[0].finished


def test_the_same_experts_as_the_library_runs_them_break_the_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many and as wide experts as the family's own: the libraries' habits show in larger products.
    save(lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**SMALL)), tmp_path)
    llm(tmp_path).close()

    def as_the_library(experts, hidden, chosen, weights):  # type: ignore[no-untyped-def]
        return type(experts).forward.__wrapped__(experts, hidden, chosen, weights)

    monkeypatch.setattr(check, "run_experts", as_the_library)
    with pytest.raises(BatchVarianceError, match="Qwen2Moe"):
        llm(tmp_path)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations so large that torch cuts them among threads, and so wide that the cuts aren't between vectors."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 1088, "intermediate_size": 2200, "num_hidden_layers": 1, "num_attention_heads": 17}
    save(lambda: StableLmForCausalLM(StableLmConfig(**SMALL | sizes | {"num_key_value_heads": 17})), folder)
    return folder


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_the_promise_holds_however_many_threads_share_a_tile(wide: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.bfloat16):
        decoder = ForeignDecoder.load(wide, dtype=dtype, device=CPU, kernels=ReferenceKernels())
        decoder.check_batch_invariance()
        assert f"threads{threads}" in decoder.implementation


def test_activations_cut_among_threads_break_the_promise(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_decoder, "run_by_rows", lambda model: None)
    torch.set_num_threads(3)
    decoder = ForeignDecoder.load(wide, dtype=torch.float32, device=CPU, kernels=ReferenceKernels())
    with pytest.raises(BatchVarianceError, match="fewer threads"):
        decoder.check_batch_invariance()


@pytest.mark.parametrize("window", [None, 9])
def test_a_mask_is_read_at_every_length(window: int | None) -> None:
    from transformers.masking_utils import (
        and_masks,
        causal_mask_function,
        chunked_causal_mask_function,
        sliding_window_causal_mask_function,
    )

    right = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    assert masks.is_causal_window(right, window, 5000)
    others = {
        None: [
            sliding_window_causal_mask_function(4999),
            chunked_causal_mask_function(4999, torch.zeros(1, dtype=int)),
        ],
        9: [causal_mask_function, sliding_window_causal_mask_function(8), sliding_window_causal_mask_function(10)],
    }
    cut_at_the_end = and_masks(right, lambda batch, head, query, key: key != query)
    for wrong in (*others[window], cut_at_the_end, lambda batch, head, query, key: query >= 0):
        assert not masks.is_causal_window(wrong, window, 5000)


@pytest.mark.parametrize("change", ["scale", "window", "rows"])
def test_the_check_at_load_fails_when_our_attention_is_wrong(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(SERVED["starcoder2"], tmp_path)
    right = ReferenceKernels.attention

    def wrong(self, q, keys, values, batch, spec):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        if change == "scale":
            spec = replace(spec, scale=spec.scale * 1.05)
        elif change == "window":
            spec = replace(spec, window=spec.window + 1)
        out = right(self, q, keys, values, batch, spec)
        return out.flip(0) if change == "rows" else out

    monkeypatch.setattr(ReferenceKernels, "attention", wrong)
    with pytest.raises(CheckpointError, match="gives other states over a paged KV"):
        ForeignDecoder.load(tmp_path, dtype=torch.float32, device=CPU, kernels=ReferenceKernels())


def test_memory_grows_with_the_rows_and_not_with_their_square(tmp_path: Path) -> None:
    """No mask over the packed rows is made: nothing allocated has two axes of them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    save(SERVED["phi"], tmp_path)
    decoder = ForeignDecoder.load(tmp_path, dtype=torch.float32, device=CPU, kernels=ReferenceKernels())
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and str(function).startswith("aten.") and "embedding" not in str(function):
                largest = max(largest, out.numel())
            return out

    rows = 90
    kv, tables = plug.fresh_kv(decoder._foreign.model, decoder.shape, 1)
    tokens = torch.arange(rows)
    with Watch(), torch.inference_mode():
        decoder.forward(tokens, plug.batch_of([(tokens, 0)], tables), kv)
    assert largest < 4 * 160 * rows
