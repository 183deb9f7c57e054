"""What a checkpoint is, read from its config.json into one form for all families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orcinus.core.request import PoolingType
from orcinus.errors import CheckpointError, UnknownModel, nearest
from orcinus.kernels import Activation
from orcinus.layers.rotary import Rotary
from orcinus.models.config_moe import MoeConfig, read_moe
from orcinus.models.config_rope import extended_positions, read_rotaries
from orcinus.models.families import FAMILIES
from orcinus.models.families.family import Family, Flag, Residual, Switch, Use
from orcinus.models.fields import ConfigFields
from orcinus.models.pooling import read_pooling
from orcinus.models.quantized.layouts import Layout, layout_of

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_LAYER_TYPES = ("sliding_attention", "full_attention")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model of any family. Sizes in elements.

    Args:
        family: the table entry: mechanisms and tensor names.
        architecture: as config.json names it.
        use: what the architecture's name promises; weights of other heads are used where they are there.
        labels: names of the classes in the order of their scores, should there be a classifier.
        pooling: as the folder says, or None.
        embedding_size: width of the embedding and the vocabulary head, usually the hidden size.
        num_segments: 0 where segments don't matter.
        max_positions: the longest sequence that the model was made for.
        windows: one entry a layer; the keys that a row sees, its own included, or None for all.
        rotaries: one entry a layer; None where positions enter otherwise.
        dtype: as the checkpoint names it, `float32` if it doesn't.
        layout: how weights of integers are stored; None where all are floats.
    """

    family: Family
    architecture: str
    use: Use
    labels: tuple[str, ...]
    pooling: PoolingType | None
    vocab_size: int
    embedding_size: int
    num_segments: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    activation: Activation
    residual: Residual
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    tie_embeddings: bool
    rotaries: tuple[Rotary | None, ...]
    windows: tuple[int | None, ...]
    attention_scale: float
    attention_soft_cap: float | None
    logit_soft_cap: float | None
    moe: MoeConfig | None
    dtype: str
    layout: Layout | None


def find_folder(name: str | Path) -> Path:
    """The checkpoint folder that a user's `name` means.

    Raises:
        CheckpointError: no such folder; a hub's name is explained.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; give the folder that holds config.json and the weights.")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        raise CheckpointError(
            f"{name} is no folder here. If it is a hub's name: Orcinus never downloads. Fetch it first, for example "
            f"`hf download {name} --local-dir {str(name).rsplit('/', 1)[1]}`, and give that folder."
        )
    raise CheckpointError(f"{folder} doesn't exist; give the folder that holds config.json and the weights.")


def load_config(folder: Path) -> ModelConfig:
    """Read `folder`/config.json.

    Raises:
        CheckpointError: no folder, missing, malformed, or a model that Orcinus doesn't serve; it names file and remedy.
    """
    fields = ConfigFields.read(find_folder(folder) / "config.json")
    family, architecture = _family(fields)
    fields = fields.with_defaults(family.defaults)
    _refuse_unserved(fields, family)
    keys = family.keys
    hidden_size, num_heads = fields.integer(keys.hidden_size), fields.integer(keys.num_heads)
    num_layers = fields.integer(keys.num_layers)
    head_dim = fields.integer(keys.head_dim, default=hidden_size // num_heads)
    num_kv_heads = fields.integer(keys.num_kv_heads, default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(f"{num_heads} attention heads don't divide among {num_kv_heads} key-value heads")
    windows = _windows(fields, family, num_layers)
    rotaries = read_rotaries(fields, family, head_dim, windows)
    return ModelConfig(
        family=family,
        architecture=architecture,
        use=family.architectures[architecture],
        labels=_labels(fields),
        pooling=read_pooling(fields.path.parent),
        vocab_size=fields.integer("vocab_size"),
        embedding_size=fields.integer(keys.embedding_size, default=hidden_size),
        num_segments=fields.integer(keys.num_segments) if keys.num_segments else 0,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer(keys.intermediate_size, default=None if family.gated_mlp else 4 * hidden_size),
        max_positions=extended_positions(rotaries, fields.integer(keys.max_positions)),
        norm_eps=fields.number(keys.norm_eps),
        activation=_activation(fields, keys.activation),
        residual=_residual(fields, family.residual),
        qkv_bias=_flag(fields, family.qkv_bias),
        attention_output_bias=_flag(fields, family.attention_output_bias),
        mlp_bias=_flag(fields, family.mlp_bias),
        tie_embeddings=fields.flag("tie_word_embeddings"),
        rotaries=rotaries,
        windows=windows,
        attention_scale=(fields.positive(keys.attention_scalar) if keys.attention_scalar else head_dim) ** -0.5,
        attention_soft_cap=fields.optional_positive(keys.attention_soft_cap),
        logit_soft_cap=fields.optional_positive(keys.logit_soft_cap),
        moe=read_moe(fields, family, num_layers),
        dtype=fields.text("dtype", default=fields.text("torch_dtype", default="float32")),
        layout=layout_of(fields),
    )


def _family(fields: ConfigFields) -> tuple[Family, str]:
    """By architecture; by model type where a file names no architecture, whose first one it then is."""
    architectures = fields.values.get("architectures")
    if isinstance(architectures, list) and architectures:
        name, known = str(architectures[0]), {name: family for family in FAMILIES for name in family.architectures}
    else:
        name, known = fields.text("model_type"), {family.model_type: family for family in FAMILIES}
    if name not in known:
        served = ", ".join(known)
        complaint = f"{name!r} is not a model that Orcinus serves{nearest(name, known)}. Served: {served}."
        raise UnknownModel(f"{fields.path}: {complaint}")
    return known[name], name if name in known[name].architectures else next(iter(known[name].architectures))


def _refuse_unserved(fields: ConfigFields, family: Family) -> None:
    """Options whose neglect would give wrong answers."""
    for key, value in family.only.items():
        if fields.values.get(key, value) != value:
            raise fields.error(f"{key} is {fields.values[key]!r}; only {value!r} is served.")


def _flag(fields: ConfigFields, flag: Flag) -> bool:
    return fields.flag(flag) if isinstance(flag, str) else flag


def _residual(fields: ConfigFields, residual: Residual | Switch) -> Residual:
    if not isinstance(residual, Switch):
        return residual
    return residual.on if fields.flag(residual.key) else residual.off


def _activation(fields: ConfigFields, key: str) -> Activation:
    name = fields.text(key)
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise fields.error(f"{key} is {name!r}{nearest(name, _ACTIVATIONS)}; served are {known}.")
    return _ACTIVATIONS[name]


def _labels(fields: ConfigFields) -> tuple[str, ...]:
    """`id2label` in the order of ids; Transformers leaves it out when it is LABEL_0 and LABEL_1."""
    named = fields.inner("id2label").values
    if not named:
        return tuple(f"LABEL_{index}" for index in range(fields.integer("num_labels", default=2)))
    if set(named) != {str(index) for index in range(len(named))}:
        raise fields.error(f"id2label has the ids {', '.join(named)}; those from 0 to {len(named) - 1} are needed.")
    return tuple(str(named[str(index)]) for index in range(len(named)))


def _windows(fields: ConfigFields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """`layer_types` where given and heeded, else the family's rule."""
    off = fields.values.get("sliding_window") is None and family.windows != "sliding_window_pattern"
    if off or family.windows == "none":
        return (None,) * num_layers
    window = fields.integer("sliding_window")
    if family.windows == "all":
        return (window,) * num_layers
    if family.windows == "from_max_window_layers" and not fields.flag("use_sliding_window"):
        return (None,) * num_layers
    types = fields.values.get("layer_types")
    if not isinstance(types, list):
        return tuple(window if windowed else None for windowed in _windowed(fields, family, num_layers))
    if len(types) != num_layers:
        raise fields.error(f"layer_types has {len(types)} entries for {num_layers} layers.")
    if unknown := set(map(str, types)) - set(_LAYER_TYPES):
        raise fields.error(f"layer_types names {min(unknown)!r}; {' and '.join(_LAYER_TYPES)} are served.")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _windowed(fields: ConfigFields, family: Family, num_layers: int) -> list[bool]:
    """Which layers have a window where `layer_types` doesn't say."""
    if family.windows == "sliding_window_pattern":
        pattern = fields.integer("sliding_window_pattern")
        return [(layer + 1) % pattern != 0 for layer in range(num_layers)]
    first = int(fields.number("max_window_layers"))
    return [layer >= first for layer in range(num_layers)]
