"""`orcinus eval`: how often is an endpoint right?"""

from __future__ import annotations

import os
from pathlib import Path

from orcinus.bench.extra import require
from orcinus.cli.serve import API_KEY_VARIABLE


def evaluate(
    tasks: Path,
    /,
    *,
    base_url: str = "http://127.0.0.1:8000",
    model: str | None = None,
    api_key: str | None = None,
    concurrency: int = 16,
    limit: int | None = None,
    max_tokens: int = 400,
    timeout: float = 600.0,
    json: bool = False,
    show_mistakes: int = 0,
    answers: Path | None = None,
) -> int:
    """Ask an OpenAI endpoint the exercises of a file and print how many answers are right, by task.

    A line of the file is {"task": ..., "messages": [...], "answer": ..., "check": "exact" or "json" or "pattern"}.
    Answers are greedy. A request that fails counts as asked, and is shown.

    Args:
        tasks: file of exercises, as models/orcinus-tiny/eval.jsonl.
        base_url: address of the server, with or without /v1.
        model: name to ask for; without it, the first that the server lists.
        api_key: sent as a bearer token; better given as ORCINUS_API_KEY.
        concurrency: most requests at a time.
        limit: most exercises of each task.
        max_tokens: longest answer.
        timeout: seconds for one answer.
        json: print JSON instead of the table.
        show_mistakes: print so many wrong answers of each task.
        answers: file for all answers, one JSON line each, to compare two engines.
    """
    require("aiohttp")
    import uvloop

    from orcinus.bench import evaluation
    from orcinus.bench.output import show, write_json
    from orcinus.bench.tasks import read_tasks

    exercises = read_tasks(tasks, limit)
    config = evaluation.EvalConfig(
        base_url=base_url,
        model=model,
        api_key=api_key or os.environ.get(API_KEY_VARIABLE),
        concurrency=concurrency,
        max_tokens=max_tokens,
        timeout=timeout,
    )
    result = uvloop.run(evaluation.evaluate(exercises, config))
    if answers is not None:
        evaluation.write_answers(result, answers)
    if json:
        write_json(evaluation.eval_json(result), None)
    else:
        show(evaluation.eval_table(result, show_mistakes))
    return 0
