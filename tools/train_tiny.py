"""Train orcinus-tiny from nothing: makes its text and tokeniser, trains, evaluates, writes models/orcinus-tiny.

python tools/train_tiny.py                   # about half an hour on two cores
python tools/train_tiny.py --minutes 3 --out /tmp/tiny
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tiny.card import CardFacts, model_card
from tiny.evaluation import score_all
from tiny.tokenizer import build_tokenizer, save_tokenizer
from tiny.training import TrainingPlan, new_model, train
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

MODEL_FOLDER = Path(__file__).resolve().parent.parent / "models" / "orcinus-tiny"
EVALUATION_SEED = 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train orcinus-tiny from nothing.")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="folder to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=3500, help="stop after this many steps (%(default)s)")
    parser.add_argument("--minutes", type=float, default=40.0, help="stop after this many minutes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and text (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    parser.add_argument("--questions", type=int, default=500, help="held-out exercises asked a task (%(default)s)")
    return parser.parse_args()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint that `transformers` and servers load; weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
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


def main() -> None:
    """Train, save, read back, evaluate what was read, write the card."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, arguments.seed)
    started_at = time.monotonic()
    steps = train(model, tokenizer, TrainingPlan(arguments.steps, arguments.minutes, arguments.seed))
    minutes = (time.monotonic() - started_at) / 60
    save(model, tokenizer, arguments.out)

    saved = AutoModelForCausalLM.from_pretrained(arguments.out, dtype=torch.bfloat16)
    scores = score_all(saved, AutoTokenizer.from_pretrained(arguments.out), arguments.questions, EVALUATION_SEED)
    for score in scores:
        print(f"{score.task:14} {score.right:4} of {score.asked}  {score.right / score.asked:.1%}")
    facts = CardFacts(
        num_parameters=saved.num_parameters(),
        num_layers=saved.config.num_hidden_layers,
        hidden_size=saved.config.hidden_size,
        vocabulary=len(tokenizer),
        weights_size=(arguments.out / "model.safetensors").stat().st_size,
        folder_size=sum(file.stat().st_size for file in arguments.out.iterdir() if file.name != "README.md"),
        steps=steps,
        minutes=minutes,
        seed=arguments.seed,
    )
    (arguments.out / "README.md").write_text(model_card(facts, scores))


if __name__ == "__main__":
    main()
