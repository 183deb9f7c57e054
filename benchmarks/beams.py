"""How many KV blocks beams and parallel samples share: blocks held over blocks that each would need for itself.

    python benchmarks/beams.py [model folder]

Prompts and lengths are those of Alpaca on average (19 tokens in, 58 out; vLLM, SOSP '23, §6.3), then longer ones.
"""

from __future__ import annotations

import sys

from orcinus import LLM
from orcinus.core.journal import BeamsChosen

TEXT = (
    "Once there was a little fox who lived at the edge of the forest. Every day she walked down to the river to look "
    "at the fish, and every evening she came home and told her brother what she had seen. One morning the river was "
    "gone. In its place lay a long grey road, and on the road stood a man with a lamp. "
)


def saved(llm: LLM, prompt_tokens: int, answer_tokens: int, width: int, num_prompts: int = 8) -> float:
    """Share of blocks that need not be there, over all steps of all searches."""
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode(TEXT * 8, add_special_tokens=False)
    starts = range(0, 11 * num_prompts, 11)
    prompts = [ids[start : start + prompt_tokens] for start in starts]
    # The one place where the figure is kept is core's journal.
    journal = llm._engine.scheduler.journal
    before = sum(isinstance(event, BeamsChosen) for event in journal)
    llm.beam_search(prompts, width, answer_tokens, ignore_eos=True, use_tqdm=False)
    steps = [event for event in journal if isinstance(event, BeamsChosen)][before:]
    return 1 - sum(step.blocks for step in steps) / sum(step.blocks_unshared for step in steps)


def main() -> None:
    """One line for each width."""
    model = sys.argv[1] if len(sys.argv) > 1 else "models/orcinus-tiny"
    with LLM(model, dtype="float32", threads=1, max_model_len=512, kv_cache_gib=0.25) as llm:
        print("| beams | 19 in, 58 out | 161 in, 58 out |\n| ---: | ---: | ---: |")
        for width in (2, 4, 6, 8):
            short, long = (saved(llm, prompt, 58, width) for prompt in (19, 161))
            print(f"| {width} | {short:.1%} | {long:.1%} |")


if __name__ == "__main__":
    main()
