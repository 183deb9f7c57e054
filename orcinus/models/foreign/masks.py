"""Which keys a foreign model's masks let a row see, at every length, without making such a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# (sequence, head, query's position, key's position) → whether the key is seen; broadcasts.
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def name_rule(*, mask_function: Rule, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
    """The mask function that `transformers` calls during the check at load: [1, 1, 1, 1] that carries its rule."""
    mask = torch.zeros(1, 1, 1, 1, dtype=dtype)
    mask.orcinus_rule = mask_function  # type: ignore[attr-defined]
    return mask


def rule_of(mask: Tensor) -> Rule | None:
    """The rule of one of our own masks."""
    rule: Rule | None = getattr(mask, "orcinus_rule", None)
    return rule


def is_causal_window(rule: Rule, window: int | None, longest: int) -> bool:
    """Whether a row sees, by `rule`, exactly the last `window` keys up to its own; None means all of them.

    Looks at rows around the window's edge and at the last of `longest` positions, which every chunk or cut would show.
    """
    size = window or longest
    keys, first = torch.arange(longest), torch.tensor(0)
    for query in {0, 1, size - 1, size, size + 1, longest // 2, longest - 1}:
        if not 0 <= query < longest:
            continue
        seen = rule(first, first, torch.tensor(query), keys)
        if not torch.equal(seen.expand(longest), (keys <= query) & (keys > query - size)):
            return False
    return True
