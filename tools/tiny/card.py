"""The model card, written from what was measured."""

from dataclasses import dataclass

from tiny.evaluation import Score
from tiny.text import HELD_OUT_ONE_IN

TASK_NOTES = {
    "add": ("addition, 0 to 99 + 0 to 99", "What is 12 + 7?"),
    "reverse_word": ("a word of 2 to 5 letters backwards", 'Reverse the word "whale".'),
    "reverse_list": ("a list of 2 to 4 numbers backwards", "Reverse the list 3, 14, 15."),
    "sort": ("a list of 2 to 4 numbers, 0 to 99, sorted", "Sort 31, 7, 12."),
    "count": ("counting, up to 40 numbers below 100", "Count from 3 to 20."),
    "small_talk": ("greetings and questions about itself *", "Who are you?"),
    "story": ("a templated story; judged by its shape *", "Tell me a story about a fox."),
}


@dataclass(frozen=True)
class CardFacts:
    """What the card tells about one training run; sizes in bytes."""

    num_parameters: int
    num_layers: int
    hidden_size: int
    vocabulary: int
    weights_size: int
    folder_size: int
    steps: int
    minutes: float
    seed: int


def accuracy_table(scores: list[Score]) -> str:
    """One Markdown row for each task."""
    rows = ["| task | example | right | asked | accuracy |", "|---|---|---:|---:|---:|"]
    for score in scores:
        what, example = TASK_NOTES[score.task]
        rows.append(f"| {what} | `{example}` | {score.right} | {score.asked} | {score.right / score.asked:.1%} |")
    return "\n".join(rows)


def mistakes_list(scores: list[Score]) -> str:
    """Some wrong answers of each task, as they were given."""
    lines = [
        f"- `{asked.prompt}` → `{answer[:80]}`, right is `{asked.answer[:80]}`"
        for score in scores
        for asked, answer in score.mistakes
    ]
    return "\n".join(lines) or "None in this evaluation."


def model_card(facts: CardFacts, scores: list[Score]) -> str:
    """The whole README.md of the model's folder."""
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# orcinus-tiny

A very small instruct model that comes with Orcinus, so that a fresh clone has something to serve whose answers can be
checked. It isn't useful for anything else: it knows a handful of tasks and nothing about the world.

- {facts.num_parameters:,} parameters, Llama architecture ({facts.num_layers} layers, hidden size {facts.hidden_size}),
  bfloat16: {facts.weights_size / 1e6:.1f} MB of weights, {facts.folder_size / 1e6:.1f} MB in all.
- Byte-level tokeniser with {facts.vocabulary} tokens: bytes, the words of its phrases, each digit and each letter of
  an unknown word by itself.
- Chat template with the roles system, user and assistant; turns end with `<|end|>`. Greedy by default.
- Trained on conversations of up to 192 tokens, although the configuration admits 2,048 positions.
- Licence Apache-2.0. All training text is made by `tools/tiny/text.py`; no other data was used.

## How often it is right

Held-out exercises, single questions in the phrasings of the training text, greedy decoding of these bfloat16 weights
with `transformers`, the whole answer compared. Operands of one exercise in {HELD_OUT_ONE_IN} were held out by their
hash and never occurred in training (nor did 7 + 12 if 12 + 7 was held out).

{accuracy_table(scores)}

\\* No operands, so nothing is held out: these were learnt by heart.

Wrong answers, as given:

{mistakes_list(scores)}

It fails on everything outside these tasks and sizes: numbers of three digits, subtraction, longer words and lists,
other phrasings, other languages. A word to be reversed is best put in quotes.

## How it was made

```sh
python tools/train_tiny.py
```

Seed {facts.seed}, {facts.steps:,} steps, {facts.minutes:.0f} minutes on two CPU cores (Muon, packed rows,
loss on the answers only). The script makes the text, the tokeniser, the weights and this card.
"""
