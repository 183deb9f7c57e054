"""Several heads on one loaded body: generate, embed, classify and score through `LLM`, against `transformers`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from orcinus import LLM, SamplingParams
from orcinus.errors import InvalidRequest

pytestmark = pytest.mark.slow
TEXTS = ["orcas hunt together", "they share", "what they catch is shared by all of them and none goes hungry"]
QUERY = "who shares what they catch"
LABELS = ("calm", "angry", "hungry")


def write_word_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Words with [CLS] and [SEP] around texts and between those of a pair, as BERT has them."""
    library = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    library.train_from_iterator(
        [*TEXTS, QUERY], trainers.WordLevelTrainer(special_tokens=specials, show_progress=False)
    )
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=library, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return tokenizer


def bert(folder: Path, kind: type, **options: object) -> torch.nn.Module:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        initializer_range=0.3,
        **options,
    )
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def all_heads(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random causal model with a classifier beside its vocabulary head, in the same file."""
    folder = tmp_path_factory.mktemp("all-heads")
    weights = load_file(random_llama / "model.safetensors")
    weights["score.weight"] = torch.randn(3, 160, generator=torch.Generator().manual_seed(1)) / 8
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((random_llama / "config.json").read_text())
    config["id2label"] = {str(index): label for index, label in enumerate(LABELS)}
    (folder / "config.json").write_text(json.dumps(config))
    write_word_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def llm(all_heads: Path) -> Iterator[LLM]:
    with LLM(all_heads, dtype="float32", max_model_len=256, max_batch_tokens=96, kv_cache_gib=0.05) as llm:
        yield llm


def test_one_body_generates_embeds_and_classifies(llm: LLM, all_heads: Path) -> None:
    causal = AutoModelForCausalLM.from_pretrained(all_heads, dtype=torch.float32).eval()
    classifier = LlamaForSequenceClassification.from_pretrained(all_heads, dtype=torch.float32, num_labels=3).eval()
    classifier.config.pad_token_id = 0
    rng = np.random.default_rng(0)
    # The second is cut into chunks: the budget of an iteration is 96 tokens.
    prompts = [rng.integers(2, 1003, size).tolist() for size in (5, 200, 1)]
    generated = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    embedded = llm.embed(prompts, normalize=False)
    classified = llm.classify(prompts)
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            tokens = causal.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=8,
                min_new_tokens=8,
                pad_token_id=0,
            )
            state = causal.model(ids).last_hidden_state[0, -1]
            probs = torch.softmax(classifier(ids).logits[0], dim=-1)
        assert generated[i].outputs[0].token_ids == tokens[0, len(prompt) :].tolist()
        np.testing.assert_allclose(embedded[i].outputs.embedding, state, atol=1e-4)
        np.testing.assert_allclose(classified[i].outputs.probs, probs, atol=1e-5)
        assert classified[i].outputs.label == LABELS[int(probs.argmax())]
        assert embedded[i].prompt_token_ids == prompt


def test_embeddings_have_length_one_and_may_be_cut(llm: LLM) -> None:
    whole, raw = llm.embed(TEXTS[0])[0].outputs.embedding, llm.embed(TEXTS[0], normalize=False)[0].outputs.embedding
    assert np.linalg.norm(whole) == pytest.approx(1)
    np.testing.assert_allclose(whole, np.array(raw) / np.linalg.norm(raw), atol=1e-6)
    cut = llm.embed(TEXTS[0], dimensions=16)[0].outputs.embedding
    np.testing.assert_allclose(cut, np.array(raw[:16]) / np.linalg.norm(raw[:16]), atol=1e-6)
    with pytest.raises(InvalidRequest, match="between 1 and 160"):
        llm.embed(TEXTS[0], dimensions=161)


def test_without_a_classifier_a_score_is_the_cosine_of_embeddings(random_llama: Path, tmp_path: Path) -> None:
    for file in random_llama.iterdir():
        (tmp_path / file.name).symlink_to(file)
    write_word_tokenizer(tmp_path)
    with LLM(tmp_path, dtype="float32", max_model_len=64, max_batch_tokens=64, kv_cache_gib=0.01) as llm:
        embeddings = [np.array(each.outputs.embedding) for each in llm.embed([QUERY, *TEXTS])]
        scores = [each.outputs.score for each in llm.score(QUERY, TEXTS)]
        np.testing.assert_allclose(scores, [embeddings[0] @ other for other in embeddings[1:]], atol=1e-6)
        with pytest.raises(InvalidRequest, match="has no classifier"):
            llm.classify(QUERY)
        with pytest.raises(InvalidRequest, match="2 first texts don't pair with 3"):
            llm.score([QUERY, QUERY], TEXTS)


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_an_encoder_embeds_texts_as_transformers_does(tmp_path: Path, mode: str) -> None:
    model, tokenizer = bert(tmp_path, BertModel), write_word_tokenizer(tmp_path)
    if mode == "cls":
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": 48, "pooling_mode_cls_token": True})
        )
    with LLM(tmp_path, dtype="float32", kv_cache_gib=0.01, max_batch_size=8) as llm:
        for text, found in zip(TEXTS, llm.embed(TEXTS, normalize=False), strict=True):
            inputs = tokenizer(text, return_tensors="pt")
            with torch.inference_mode():
                states = model(**inputs).last_hidden_state[0]
            assert found.prompt_token_ids == inputs.input_ids[0].tolist()
            np.testing.assert_allclose(
                found.outputs.embedding, states[0] if mode == "cls" else states.mean(0), atol=1e-4
            )
        longest = [5] * 64
        assert len(llm.embed([longest, longest, longest])) == 3
        with pytest.raises(InvalidRequest, match="at most 64 tokens"):
            llm.embed([[*longest, 5]])
        with pytest.raises(InvalidRequest, match="no vocabulary head"):
            llm.generate(TEXTS)


def test_an_encoder_classifies_pairs_with_their_segments_told_apart(tmp_path: Path) -> None:
    model = bert(tmp_path, BertForSequenceClassification, id2label=dict(enumerate(LABELS)))
    tokenizer = write_word_tokenizer(tmp_path)
    with LLM(tmp_path, dtype="float32", kv_cache_gib=0.01, max_batch_size=8) as llm:
        pairs = [(QUERY, text) for text in TEXTS]
        for pair, found in zip(pairs, llm.classify(pairs), strict=True):
            inputs = tokenizer(*pair, return_tensors="pt")
            assert inputs.token_type_ids.any()
            with torch.inference_mode():
                probs = torch.softmax(model(**inputs).logits[0], dim=-1)
                mixed_up = torch.softmax(model(inputs.input_ids).logits[0], dim=-1)
            np.testing.assert_allclose(found.outputs.probs, probs, atol=1e-5)
            assert (probs - mixed_up).abs().max() > 1e-3, "segments make no difference, so nothing was tested"
        assert llm.classify((QUERY, TEXTS[0]))[0].outputs == llm.classify(pairs)[0].outputs
        with pytest.raises(InvalidRequest, match="3 labels"):
            llm.score(QUERY, TEXTS)


def test_a_cross_encoder_scores_pairs(tmp_path: Path) -> None:
    model = bert(tmp_path, BertForSequenceClassification, num_labels=1)
    tokenizer = write_word_tokenizer(tmp_path)
    with LLM(tmp_path, dtype="float32", kv_cache_gib=0.01, max_batch_size=8) as llm:
        for text, found in zip(TEXTS, llm.score(QUERY, TEXTS), strict=True):
            with torch.inference_mode():
                score = torch.sigmoid(model(**tokenizer(QUERY, text, return_tensors="pt")).logits[0, 0])
            assert found.outputs.score == pytest.approx(float(score), abs=1e-5)
