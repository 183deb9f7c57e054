"""The families that Orcinus serves, one entry each. No file outside this folder knows a family's name."""

from __future__ import annotations

from orcinus.models.families.bert import BERT
from orcinus.models.families.family import Family
from orcinus.models.families.gemma import GEMMA2, GEMMA3
from orcinus.models.families.gpt import GPT2, GPT_NEOX, OPT
from orcinus.models.families.llama import LLAMA, MISTRAL, PHI3, QWEN2, QWEN3
from orcinus.models.families.moe import MIXTRAL, OLMOE, QWEN3_MOE

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    PHI3,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    GPT2,
    OPT,
    GPT_NEOX,
    BERT,
    MIXTRAL,
    QWEN3_MOE,
    OLMOE,
)
