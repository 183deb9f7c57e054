"""What a checkpoint is, read from its config.json into one form for all families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orcinus.errors import CheckpointError, nearest
from orcinus.kernels import Activation
from orcinus.layers.rotary import LinearScaling, Llama3Scaling, Rotary
from orcinus.models.families import FAMILIES, Family, Flag

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model of any family. Sizes in elements.

    Args:
        family: the table entry: mechanisms and tensor names.
        max_positions: the longest sequence that the model was made for.
        windows: one entry a layer; the keys that a row sees, its own included, or None for all.
        dtype: as the checkpoint names it, `float32` if it doesn't.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    activation: Activation
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    tie_embeddings: bool
    rotary: Rotary | None
    windows: tuple[int | None, ...]
    attention_scale: float
    attention_soft_cap: float | None
    dtype: str

    @property
    def architecture(self) -> str:
        """As config.json names it."""
        return self.family.architecture


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
    family = _family(fields)
    fields = fields.with_defaults(family.defaults)
    _refuse_unserved(fields, family)
    keys = family.keys
    hidden_size, num_heads = fields.integer(keys.hidden_size), fields.integer(keys.num_heads)
    num_layers = fields.integer(keys.num_layers)
    head_dim = fields.integer(keys.head_dim, default=hidden_size // num_heads)
    num_kv_heads = fields.integer(keys.num_kv_heads, default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(f"{num_heads} attention heads don't divide among {num_kv_heads} key-value heads")
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer(keys.intermediate_size, default=None if family.gated_mlp else 4 * hidden_size),
        max_positions=fields.integer(keys.max_positions),
        norm_eps=fields.number(keys.norm_eps),
        activation=_activation(fields, keys.activation),
        qkv_bias=_flag(fields, family.qkv_bias),
        attention_output_bias=_flag(fields, family.attention_output_bias),
        mlp_bias=_flag(fields, family.mlp_bias),
        tie_embeddings=fields.flag("tie_word_embeddings"),
        rotary=_rotary(fields, head_dim) if family.positions == "rotary" else None,
        windows=_windows(fields, num_layers) if family.windows else (None,) * num_layers,
        attention_scale=head_dim**-0.5,
        attention_soft_cap=None,
        dtype=fields.text("dtype", default=fields.text("torch_dtype", default="float32")),
    )


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """A JSON object from a file, read key by key; every complaint names the file. A null counts as missing."""

    path: Path
    values: Mapping[str, object]

    @classmethod
    def read(cls, path: Path) -> ConfigFields:
        """The object in `path`.

        Raises:
            CheckpointError: missing or malformed.
        """
        try:
            values = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is missing: a checkpoint folder holds config.json and .safetensors files. Point to the folder "
                "that `save_pretrained` wrote, or complete the download."
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{path} can't be read ({error}); write or download it again.") from error
        return cls(path, values)

    def error(self, complaint: str) -> CheckpointError:
        """To be raised: the complaint, after the file's name."""
        return CheckpointError(f"{self.path}: {complaint}")

    def with_defaults(self, defaults: Mapping[str, object]) -> ConfigFields:
        """The same with missing keys filled in."""
        given = {key: value for key, value in self.values.items() if value is not None}
        return ConfigFields(self.path, {**defaults, **given})

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{key} is {value!r}; a positive integer is needed.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Any number."""
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(f"{key} is {value!r}; a number is needed.")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._get(key, None)
        if not isinstance(value, bool):
            raise self.error(f"{key} is {value!r}; true or false is needed.")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(f"{key} is {value!r}; a string is needed.")
        return value

    def inner(self, key: str) -> ConfigFields:
        """An object within the object; empty if missing."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"{key} is {value!r}; an object is needed.")
        return ConfigFields(self.path, value)

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise self.error(f"{key} is missing{nearest(key, self.values)}; write it as the model's authors do.")
        return value


def _family(fields: ConfigFields) -> Family:
    """By architecture; by model type where a file names no architecture."""
    architectures = fields.values.get("architectures")
    if isinstance(architectures, list) and architectures:
        name, known = str(architectures[0]), {family.architecture: family for family in FAMILIES}
    else:
        name, known = fields.text("model_type"), {family.model_type: family for family in FAMILIES}
    if name not in known:
        served = ", ".join(known)
        raise fields.error(f"{name!r} is not a model that Orcinus serves{nearest(name, known)}. Served: {served}.")
    return known[name]


def _refuse_unserved(fields: ConfigFields, family: Family) -> None:
    """Options whose neglect would give wrong answers."""
    if fields.values.get("quantization_config") is not None:
        raise fields.error("quantised weights (quantization_config) aren't served; use the float checkpoint.")
    for key, value in family.only.items():
        if fields.values.get(key, value) != value:
            raise fields.error(f"{key} is {fields.values[key]!r}; only {value!r} is served.")


def _flag(fields: ConfigFields, flag: Flag) -> bool:
    return fields.flag(flag) if isinstance(flag, str) else flag


def _activation(fields: ConfigFields, key: str) -> Activation:
    name = fields.text(key)
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise fields.error(f"{key} is {name!r}{nearest(name, _ACTIVATIONS)}; served are {known}.")
    return _ACTIVATIONS[name]


def _windows(fields: ConfigFields, num_layers: int) -> tuple[int | None, ...]:
    """Qwen's rule: `layer_types` where given, else all layers from `max_window_layers` on."""
    if not fields.values.get("use_sliding_window"):
        return (None,) * num_layers
    window = fields.integer("sliding_window")
    types = fields.values.get("layer_types")
    if not isinstance(types, list):
        first = int(fields.number("max_window_layers"))
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if len(types) != num_layers:
        raise fields.error(f"layer_types has {len(types)} entries for {num_layers} layers.")
    if unknown := set(map(str, types)) - {"sliding_attention", "full_attention"}:
        raise fields.error(f"layer_types names {min(unknown)!r}; sliding_attention and full_attention are served.")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _rotary(fields: ConfigFields, head_dim: int) -> Rotary:
    """`rope_parameters` (Transformers 5), or `rope_theta` and `rope_scaling` (before)."""
    parameters = fields.inner("rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling")
    kind = parameters.text("rope_type", default=parameters.text("type", default="default"))
    theta = parameters.number("rope_theta", default=fields.number("rope_theta"))
    if kind not in _ROPE_TYPES:
        raise fields.error(
            f"rope type {kind!r} is not served{nearest(kind, _ROPE_TYPES)}; {', '.join(_ROPE_TYPES)} are."
        )
    if parameters.number("partial_rotary_factor", default=fields.number("partial_rotary_factor", default=1.0)) != 1:
        raise fields.error("partial_rotary_factor is not 1; models that rotate a part of each head aren't served.")
    return Rotary(head_dim, theta, _scaling(parameters, kind))


def _scaling(parameters: ConfigFields, kind: str) -> LinearScaling | Llama3Scaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(parameters.number("factor"))
    return Llama3Scaling(
        factor=parameters.number("factor"),
        low_freq_factor=parameters.number("low_freq_factor"),
        high_freq_factor=parameters.number("high_freq_factor"),
        original_positions=parameters.integer("original_max_position_embeddings"),
    )
