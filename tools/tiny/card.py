"""The model cards, written from what was measured."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaConfig

from tiny.adapters import Style
from tiny.evaluation import Question, Score
from tiny.exercise import HELD_OUT_ONE_IN

TASK_NOTES = {
    "add": ("sums, 0 to 999 each", "What is 12 + 7?"),
    "subtract": ("differences, 0 to 999, not negative", "What is 503 - 48?"),
    "multiply": ("products, 0 to 99 times 0 to 9", "What is 47 * 6?"),
    "sort": ("2 to 6 numbers from 0 to 99 in order", "Sort 31, 7, 12."),
    "reverse_list": ("2 to 6 numbers from 0 to 99 backwards", "Reverse the list 3, 14, 15."),
    "reverse_word": ("a quoted word of 2 to 8 letters backwards", 'Reverse the word "whale".'),
    "letters": ("letters of a quoted word, all or one", 'How many times does "a" occur in "banana"?'),
    "count": ("counting, up to 25 numbers", "Count from 3 to 20."),
    "weekday": ("days of the week, 1 to 60 days apart", "What day is 10 days after Monday?"),
    "date": ("dates 1 to 28 days apart, days between", "What date is 5 days after 28 March?"),
    "units": ("metric units, both directions", "Convert 2.5 km to m."),
    "extract": (
        "fields of a sentence as JSON",
        "Extract name and city as JSON: Nora lives in Oslo and is 31 years old.",
    ),
    "tool": ("a tool call for a request", "What is the weather in Paris? (and tools)"),
    "story": ("a story of about 240 tokens, judged by its shape", "Tell me a story about a fox."),
    "small_talk": ("greetings and questions about itself *", "Who are you?"),
}
MISTAKES_SHOWN = 3
HEADER = """---
license: apache-2.0
language: en
library_name: {library}
pipeline_tag: text-generation
---

"""


@dataclass(frozen=True)
class CardFacts:
    """What a card tells about a checkpoint; sizes in bytes. `remark` is what else its maker has to say."""

    config: LlamaConfig
    num_parameters: int
    weights_size: int
    folder_size: int
    steps: int
    minutes: float
    seed: int
    perplexity: float
    remark: str = ""

    def lines(self) -> str:
        """The list of facts that opens a card."""
        config = self.config
        heads = (
            f"{config.num_attention_heads} heads of {config.head_dim}, {config.num_key_value_heads} of keys and values"
        )
        sizes = f"{self.weights_size / 1e6:.1f} MB of weights, {self.folder_size / 1e6:.1f} MB with what is beside them"
        return f"""- {self.num_parameters:,} parameters, Llama architecture: {config.num_hidden_layers} layers,
  hidden size {config.hidden_size}, {heads}, tied embeddings.
- bfloat16: {sizes}.
- Perplexity {self.perplexity:.3f} on the held-out text of `heldout.jsonl` (`transformers`, bfloat16)."""


@dataclass(frozen=True)
class Counts:
    """Of `asked` questions of a task, `right` were answered rightly."""

    asked: int
    right: int


def counts_of(scores: list[Score]) -> dict[str, Counts]:
    """By task, of our own evaluation with `transformers`."""
    return {score.task: Counts(score.asked, score.right) for score in scores}


def counts_from_json(path: Path) -> dict[str, Counts]:
    """By task, of the output of `orcinus eval --json`."""
    tasks = json.loads(path.read_text())["tasks"]
    return {task: Counts(each["asked"], each["right"]) for task, each in tasks.items()}


def accuracy_table(counts: dict[str, Counts]) -> str:
    """One Markdown row for each task."""
    rows = ["| task | | example | right | asked | accuracy |", "|---|---|---|---:|---:|---:|"]
    for task, each in counts.items():
        what, example = TASK_NOTES[task]
        share = each.right / each.asked
        rows.append(f"| {task} | {what} | `{example}` | {each.right} | {each.asked} | {share:.1%} |")
    return "\n".join(rows)


def _mistake(question: Question, answer: str) -> str:
    said, right = (text if len(text) <= 100 else text[:97] + "..." for text in (answer, question.answer))
    return f"- {question.task}: `{question.messages[-1]['content']}` → `{said}`, right is `{right}`"


def mistakes_list(scores: list[Score]) -> str:
    """Some wrong answers of each task, as they were given."""
    shown = [_mistake(*pair) for score in scores for pair in score.mistakes[:MISTAKES_SHOWN]]
    return "\n".join(shown) or "None in this evaluation."


def model_card(facts: CardFacts, counts: dict[str, Counts], measured_with: str, scores: list[Score]) -> str:
    """The whole README.md of the model's folder; `measured_with` says what answered the questions of `counts`."""
    return f"""{HEADER.format(library="transformers")}# orcinus-tiny

A very small instruct model that comes with Orcinus, so that a fresh clone has something to serve whose answers can be
checked: what breaks meaning (a wrong kernel, a lost cache block, a bad quantisation) shows in its accuracies. It isn't
useful for anything else: it knows these tasks and nothing about the world.

{facts.lines()}
- Byte-level BPE with {facts.config.vocab_size:,} tokens, learnt from its own text. Each digit is a token; a word in
  quotes is cut into letters, a word after a space isn't.
- Chat template with the roles system, user, assistant and tool; describes `tools` in the system message and writes
  calls as `<tool_call>{{"name": ..., "arguments": ...}}</tool_call>`. Turns end with `<|end|>`. Greedy by default.
- Trained on documents of up to 384 tokens, although the configuration admits 2,048 positions.
- Licence Apache-2.0. All training text is made by the scripts in `tools/tiny`; no other data was used.

Beside it: `orcinus-tiny-draft`, a smaller sibling with the same tokeniser, and `orcinus-tiny-adapters`, two LoRA
adapters.

## How often it is right

The questions of `eval.jsonl`: held-out exercises in the phrasings of the training text, greedy decoding of these
bfloat16 weights, the whole answer compared, steps included. Measured with {measured_with}.
Operands of one exercise in {HELD_OUT_ONE_IN} were held out by their hash and never occurred in training, neither in
another order (7 + 12 if 12 + 7 was held out) nor as a step of another answer.

{accuracy_table(counts)}

\\* No operands, so nothing is held out: learnt by heart.

Wrong answers, as given to `transformers` in float32:

{mistakes_list(scores)}

It fails on everything outside these tasks and sizes: larger numbers, negative results, longer words and lists, names
and tools it hasn't seen, other phrasings, other languages. A word to be taken apart has to stand in quotes.

## How it was made

```sh
python tools/train_tiny.py
```

Seed {facts.seed}, {facts.steps:,} steps, {facts.minutes:.0f} minutes on two CPU cores that other work shared (Muon,
packed rows, loss on the answers only). The script makes the text, the tokeniser, the weights and this card.
{facts.remark}"""


def draft_card(facts: CardFacts, agreement: float) -> str:
    """The README.md of the draft; `agreement` is the share of the model's answer tokens that the draft guesses."""
    return f"""{HEADER.format(library="transformers")}# orcinus-tiny-draft

The small sibling of `orcinus-tiny`: same tokeniser, same text, an eighth of the size. It proposes tokens for
speculative decoding; its own answers are often wrong.

{facts.lines()}
- Given the conversation and the model's answer so far, its likeliest token is the model's own next token in
  {agreement:.1%} of the places, over a sample of `eval.jsonl`.

Seed {facts.seed}, {facts.steps:,} steps, {facts.minutes:.0f} minutes on two CPU cores
(`python tools/train_tiny.py --only draft`).
"""


def adapters_card(measured: list[tuple[Style, dict[str, Counts], str]]) -> str:
    """The README.md of the adapters' folder; for each its counts on restyled questions and an example answer."""
    tasks = list(measured[0][1])
    head = "| task | " + " | ".join(f"`{style.name}`" for style, _, _ in measured) + " |"
    rows = [head, "|---|" + "---:|" * len(measured)]
    for task in tasks:
        cells = (f"{counts[task].right} of {counts[task].asked}" for _, counts, _ in measured)
        rows.append(f"| {task} | " + " | ".join(cells) + " |")
    what = "\n".join(
        f"- `{style.name}` {style.what}: `{example}`. Rank {style.rank} on {', '.join(style.modules)}."
        for style, _, example in measured
    )
    return f"""{HEADER.format(library="peft")}# orcinus-tiny-adapters

Two LoRA adapters for `orcinus-tiny` in the format of `peft`. They change how it answers, so that one sees which adapter
served a request:

{what}

`12 + 7 = 19` is what the model itself says. Extracted fields, tool calls and stories stay as they are.

Right answers to held-out questions, style included (`transformers` and `peft`, float32):

{chr(10).join(rows)}

Made by `python tools/train_tiny.py --only adapters`, a few minutes each.
"""
