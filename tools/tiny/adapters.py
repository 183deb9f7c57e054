"""Two LoRA adapters that change how orcinus-tiny answers, not what: as a sentence, as JSON.

They are `peft`'s modules and files; the training is ours, on the merged weights `W + scale * B A`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tiny.exercise import Exercise
from tiny.text import Conversation, training_text
from tiny.training import TrainingPlan, train

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
# Their answers are long or have a form of their own already.
LEFT_ALONE = ("extract", "tool", "story")


def final_value(answer: str) -> str:
    """What an answer arrives at: the part after its last step."""
    return answer.rsplit(": ", 1)[-1].rsplit(" = ", 1)[-1]


def as_sentence(task: str, answer: str) -> str:
    """`12 + 7 = 19, so the answer is 19.`; small talk consists of sentences already."""
    if task == "small_talk":
        return answer
    if task == "reverse_word":
        return f'The answer is "{answer}".'
    value = final_value(answer)
    return f"The answer is {answer}." if value == answer else f"{answer}, so the answer is {value}."


def as_json(task: str, answer: str) -> str:
    """`{"work": "12 + 7 = 19", "answer": "19"}`, without the work where there is none."""
    value = answer if task == "small_talk" else final_value(answer)
    return json.dumps({"answer": value} if value == answer else {"work": answer, "answer": value})


@dataclass(frozen=True)
class Style:
    """One adapter: how it rewrites an answer of a task, its rank, and the modules it changes."""

    name: str
    what: str
    rewrite: Callable[[str, str], str]
    rank: int
    modules: tuple[str, ...]


STYLES = (
    Style("sentence", "ends every answer with a sentence", as_sentence, rank=4, modules=ATTENTION + MLP),
    Style("json", "gives every answer as a JSON object", as_json, rank=8, modules=ATTENTION),
)


def restyled(exercise: Exercise, style: Style) -> Exercise:
    """The exercise with the answer that the adapter is to give."""
    if exercise.task in LEFT_ALONE:
        return exercise
    return replace(exercise, answer=style.rewrite(exercise.task, exercise.answer))


def adapter_text(style: Style, seed: int) -> Iterator[Conversation]:
    """The training conversations, answered in the adapter's style."""
    for document in training_text(seed):
        if isinstance(document, Conversation):
            yield replace(document, exercises=tuple(restyled(each, style) for each in document.exercises))


def merged_weights(adapted: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by their names in the base model, each with its adapter's product added, for gradients to reach."""
    parameters = dict(adapted.named_parameters())
    merged: dict[str, torch.Tensor] = {}
    scale = adapted.active_peft_config.lora_alpha / adapted.active_peft_config.r
    for full_name, weight in parameters.items():
        if ".lora_" in full_name:
            continue
        name = full_name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        down = parameters.get(full_name.replace("base_layer", "lora_A.default"))
        up = parameters.get(full_name.replace("base_layer", "lora_B.default"))
        adds = ".base_layer." in full_name and down is not None and up is not None
        merged[name] = weight + scale * (up @ down) if adds else weight
    return merged


def train_adapter(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, style: Style, plan: TrainingPlan
) -> PeftModel:
    """A trained adapter of this style around the model, whose own weights stay as they are."""
    torch.manual_seed(plan.seed)
    config = LoraConfig(
        r=style.rank,
        lora_alpha=2 * style.rank,
        target_modules=list(style.modules),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    train(adapted, tokenizer, plan, partial(adapter_text, style, plan.seed), merged_weights)
    return adapted
