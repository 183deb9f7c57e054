"""Train orcinus-tiny from nothing: makes its text and tokeniser, trains it, its draft and its adapters, evaluates.

python tools/train_tiny.py                            # about an hour on two free cores, 45 minutes of it the model
python tools/train_tiny.py --only model --minutes 3 --out /tmp/models
python tools/train_tiny.py --only cards --evaluation eval.json    # accuracies that `orcinus eval --json` printed
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from tiny import card
from tiny.adapters import STYLES, Style, restyled, train_adapter
from tiny.evaluation import (
    agreement,
    held_out_exercises,
    perplexity,
    question_of,
    read_questions,
    score_all,
    write_questions,
)
from tiny.text import held_out_text, training_text
from tiny.tokenizer import build_tokenizer, save_tokenizer
from tiny.training import DRAFT, TINY, Size, TrainingPlan, new_model, train
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

MODELS = Path(__file__).resolve().parent.parent / "models"
MODEL, DRAFT_MODEL, ADAPTERS = "orcinus-tiny", "orcinus-tiny-draft", "orcinus-tiny-adapters"
HELD_OUT_SEED = 2
HELD_OUT_CHARACTERS = 30_000
ADAPTER_QUESTIONS = 50  # for each task
AGREEMENT_EVERY = 15  # one question in so many is answered token by token
OURS = "`transformers` in float32"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train orcinus-tiny, its draft and its adapters from nothing.")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder for the models' folders (%(default)s)")
    parser.add_argument("--only", choices=tuple(STAGES), help="this part alone; what it needs is read from --out")
    parser.add_argument("--minutes", type=float, default=45.0, help="most for the model (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and text (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="for training, one thread each (%(default)s)")
    parser.add_argument("--questions", type=int, default=200, help="held-out exercises for each task (%(default)s)")
    parser.add_argument("--evaluation", type=Path, help="accuracies for the card, from `orcinus eval --json`")
    return parser.parse_args()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint that `transformers` and servers load; weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder)
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "do_sample": False,
        "temperature": 0.0,
    }
    # Written by hand: transformers refuses to save a temperature beside greedy decoding, servers read it as default.
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def make_model(size: Size, plan: TrainingPlan, folder: Path) -> None:
    """Train a model of this size, saving it every few minutes, and note in `training.json` how long it took."""
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, size, plan.seed)
    started_at = time.monotonic()

    def checkpoint(step: int) -> None:
        save(model, tokenizer, folder)
        minutes = round((time.monotonic() - started_at) / 60, 1)
        (folder / "training.json").write_text(json.dumps({"steps": step, "minutes": minutes, "seed": plan.seed}) + "\n")

    checkpoint(train(model, tokenizer, plan, partial(training_text, plan.seed), checkpoint=checkpoint))


def make_tiny(arguments: argparse.Namespace) -> None:
    """The model, its questions and its held-out text."""
    folder = arguments.out / MODEL
    make_model(TINY, TrainingPlan(4000, arguments.minutes, arguments.seed, arguments.processes), folder)
    exercises = held_out_exercises(arguments.questions)
    write_questions([question_of(each) for each in exercises], folder / "eval.jsonl")
    write_held_out_text(folder)


def write_held_out_text(folder: Path) -> None:
    """`heldout.jsonl`: one document a line."""
    texts = held_out_text(HELD_OUT_SEED, HELD_OUT_CHARACTERS)
    (folder / "heldout.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def make_draft(arguments: argparse.Namespace) -> None:
    """The draft: small matrices learn faster at a higher rate."""
    minutes = arguments.minutes / 9
    plan = TrainingPlan(4000, minutes, arguments.seed, arguments.processes, learning_rate=4e-3)
    make_model(DRAFT, plan, arguments.out / DRAFT_MODEL)


def make_adapters(arguments: argparse.Namespace) -> None:
    """Both adapters, and a card of how well they do what they are for."""
    folder = arguments.out / ADAPTERS
    measured = []
    for style in STYLES:
        model, tokenizer = load(arguments.out / MODEL)
        minutes = arguments.minutes / 18
        plan = TrainingPlan(600, minutes, arguments.seed + 1, arguments.processes, learning_rate=5e-3)
        adapted = train_adapter(model, tokenizer, style, plan)
        save_adapter(adapted, folder / style.name)
        questions = [question_of(restyled(each, style)) for each in held_out_exercises(ADAPTER_QUESTIONS)]
        counts = card.counts_of(score_all(adapted, tokenizer, questions))
        measured.append((style, counts, example_of(style)))
    (folder / "README.md").write_text(card.adapters_card(measured))


def save_adapter(adapted: PeftModel, folder: Path) -> None:
    """Write `peft`'s files without what differs from run to run: the order of a set, the place of the base model."""
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
    (folder / "adapter_model.safetensors").chmod(0o644)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config |= {"base_model_name_or_path": MODEL, "target_modules": sorted(config["target_modules"])}
    path.write_text(json.dumps(config, indent=2) + "\n")


def example_of(style: Style) -> str:
    """What the adapter makes of the model's answer to 12 + 7."""
    return style.rewrite("add", "12 + 7 = 19")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A saved model and its tokeniser."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)


def facts_of(folder: Path, texts: list[str]) -> card.CardFacts:
    """What a card says about a folder."""
    model, tokenizer = load(folder, torch.bfloat16)
    return card.CardFacts(
        config=model.config,
        num_parameters=model.num_parameters(),
        weights_size=(folder / "model.safetensors").stat().st_size,
        folder_size=sum(file.stat().st_size for file in folder.iterdir() if file.name != "README.md"),
        perplexity=perplexity(model, tokenizer, texts),
        **json.loads((folder / "training.json").read_text()),
    )


def make_cards(arguments: argparse.Namespace) -> None:
    """The cards of model and draft, from an evaluation of what was saved."""
    folder, draft_folder = arguments.out / MODEL, arguments.out / DRAFT_MODEL
    texts = [json.loads(line)["text"] for line in (folder / "heldout.jsonl").read_text().splitlines()]
    questions = read_questions(folder / "eval.jsonl")
    model, tokenizer = load(folder)
    scores = score_all(model, tokenizer, questions)
    for score in scores:
        print(f"{score.task:14} {score.right:4} of {score.asked}  {score.right / score.asked:.1%}")
    served = arguments.evaluation is not None
    counts = card.counts_from_json(arguments.evaluation) if served else card.counts_of(scores)
    measured_with = "`orcinus eval` through `orcinus serve`" if served else OURS
    (folder / "README.md").write_text(card.model_card(facts_of(folder, texts), counts, measured_with, scores))
    share = agreement(model, load(draft_folder)[0], tokenizer, questions[::AGREEMENT_EVERY])
    (draft_folder / "README.md").write_text(card.draft_card(facts_of(draft_folder, texts), share))


STAGES = {"model": make_tiny, "draft": make_draft, "adapters": make_adapters, "cards": make_cards}


def main() -> None:
    """Run the stages asked for, in order."""
    arguments = parse_arguments()
    # Training brings its own processes, and answers of so small a model gain nothing from a second thread.
    torch.set_num_threads(1)
    for name, make in STAGES.items():
        if arguments.only in (None, name):
            make(arguments)


if __name__ == "__main__":
    main()
