"""How orcinus-tiny is trained: forward pass and adapters as in transformers and peft, nothing lost in packing."""

import itertools
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny.adapters import STYLES, adapter_text, as_json, as_sentence, merged_weights
from tiny.network import IGNORED, final_states
from tiny.packing import Batch, RowShape, batches
from tiny.text import Conversation, training_text
from tiny.tokenizer import VOCABULARY, Encoder, build_tokenizer
from tiny.training import Size, TrainingPlan, named_weights, new_model, optimizers_for, rate_at
from torch.nn import functional

TOKENIZER = build_tokenizer()
ENCODER = Encoder(TOKENIZER)
SMALL = Size(hidden=128, intermediate=192, layers=2, heads=2, kv_heads=1)
SHORT, LONG = RowShape(rows=4, tokens=96), RowShape(rows=2, tokens=384)


def packed(count: int) -> list[tuple[Batch, ...]]:
    documents = map(ENCODER.encode, training_text(seed=3))
    return list(itertools.islice(batches(documents, SHORT, LONG, TOKENIZER.pad_token_id), count))


def test_states_of_packed_documents_equal_those_of_transformers_for_each_document_alone() -> None:
    model = new_model(TOKENIZER, SMALL, seed=1)
    batch = packed(1)[0][0]
    with torch.no_grad():
        states = final_states(named_weights(model), batch.ids, batch.positions, model.config).float()
    checked = 0
    for row in range(SHORT.rows):
        starts = [*(batch.positions[row] == 0).nonzero().flatten().tolist(), SHORT.tokens]
        for start, end in itertools.pairwise(starts):
            if batch.ids[row, start] == TOKENIZER.pad_token_id:
                continue
            with torch.no_grad():
                alone = model.model(batch.ids[row : row + 1, start:end]).last_hidden_state[0]
            # bfloat16 against float32; states are normed, so of size 1.
            assert functional.cosine_similarity(states[row, start:end], alone).min() > 0.999
            checked += 1
    assert checked > SHORT.rows


def test_every_document_is_packed_once_with_its_own_positions_and_labels() -> None:
    sources = [ENCODER.encode(doc) for doc in itertools.islice(training_text(seed=3), 2_000)]
    expected = {}
    for ids, learnt in sources:
        labels = [token if flag else IGNORED for token, flag in zip(ids[1:], learnt[1:], strict=True)]
        expected[tuple(ids)] = [*labels, IGNORED]
    seen = 0
    for batch in itertools.chain.from_iterable(packed(40)):
        for ids, positions, labels in zip(batch.ids, batch.positions, batch.labels, strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            for start, end in itertools.pairwise(starts):
                assert positions[start:end].tolist() == list(range(end - start))
                if ids[start] != TOKENIZER.pad_token_id:
                    assert labels[start:end].tolist() == expected[tuple(ids[start:end].tolist())]
                    seen += 1
    assert seen > 300


def test_little_of_a_batch_is_padding() -> None:
    parts = list(itertools.chain.from_iterable(packed(30)))
    filled = sum(int((part.ids != TOKENIZER.pad_token_id).sum()) for part in parts)
    assert filled > 0.85 * sum(part.ids.numel() for part in parts)


def test_the_learning_rate_rises_and_ends_at_zero() -> None:
    assert rate_at(0.01) == pytest.approx(0.5)
    assert max(rate_at(step / 1000) for step in range(1001)) == pytest.approx(0.98)
    assert rate_at(1.0) == 0


def test_muon_takes_the_matrices_of_layers_and_adam_the_rest() -> None:
    model = new_model(TOKENIZER, SMALL, seed=1)
    muon, adam = optimizers_for(list(model.parameters()), TrainingPlan(steps=1, minutes=1))
    assert {id(weight) for group in muon.param_groups for weight in group["params"]} == {
        id(weight) for weight in model.model.layers.parameters() if weight.ndim == 2
    }
    assert sum(len(group["params"]) for group in adam.param_groups) == 2 * SMALL.layers + 2


# peft asks transformers for a property under its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_merged_weights_give_the_states_of_peft() -> None:
    model = new_model(TOKENIZER, SMALL, seed=1)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    ids = torch.randint(0, VOCABULARY, (1, 40), generator=generator)
    merged = new_model(TOKENIZER, SMALL, seed=2)
    with torch.no_grad():
        missing = merged.load_state_dict({**merged_weights(adapted)}, strict=False)
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
        with adapted.disable_adapter():
            assert not torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-2)
    assert missing.missing_keys == ["lm_head.weight"]  # tied


def test_styles_keep_the_answer_and_show_themselves() -> None:
    assert as_sentence("add", "12 + 7 = 19") == "12 + 7 = 19, so the answer is 19."
    assert as_sentence("sort", "7, 12, 31") == "The answer is 7, 12, 31."
    assert as_sentence("reverse_word", "elahw") == 'The answer is "elahw".'
    assert json.loads(as_json("weekday", "8 days = 1 weeks + 1 days: Friday"))["answer"] == "Friday"
    assert as_json("reverse_word", "elahw") == '{"answer": "elahw"}'


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_adapters_learn_the_training_conversations_with_other_answers(style) -> None:
    plain = (doc for doc in training_text(seed=4) if isinstance(doc, Conversation))
    changed = 0
    for doc, source in itertools.islice(zip(adapter_text(style, seed=4), plain, strict=False), 300):
        for made, original in zip(doc.exercises, source.exercises, strict=True):
            assert (made.task, made.key, made.prompt) == (original.task, original.key, original.prompt)
            changed += made.answer != original.answer
    assert changed > 200
