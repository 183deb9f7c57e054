"""The bounds of everything a client may ask, once.

As types: the front end decodes requests by them, its OpenAPI document prints them, a fuzzer reads them there, and
`SamplingParams` checks what comes from Python by the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.inspect import (
    BoolType,
    DictType,
    Field,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    type_info,
)

from orcinus.errors import InvalidRequest

MAX_TOKEN_ID = 2**31 - 1
# Requests carry lists of tokens through the engine; a vocabulary-sized one would cost every iteration.
_MAX_LISTED_TOKENS = 1024

TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
ListedTokens = Annotated[list[TokenId], Meta(max_length=_MAX_LISTED_TOKENS)]
AllowedTokens = Annotated[list[TokenId], Meta(min_length=1, max_length=_MAX_LISTED_TOKENS)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
LogitBias = Annotated[dict[TokenId, Bias], Meta(max_length=_MAX_LISTED_TOKENS)]

NumAnswers = Annotated[int, Meta(ge=1, le=128)]
NumTokens = Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)]
MinTokens = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopK = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
# No probability at all would keep no token.
TopP = Annotated[float, Meta(gt=0, le=1)]
MinP = Annotated[float, Meta(ge=0, le=1)]
# It divides.
RepetitionPenalty = Annotated[float, Meta(gt=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
NumLogprobs = Annotated[int, Meta(ge=0, le=20)]
# Further out no score could be told from another.
LengthPenalty = Annotated[float, Meta(ge=-8, le=8)]
EarlyStopping = bool | Literal["never"]
StopString = Annotated[str, Meta(min_length=1, max_length=512)]
Stop = StopString | Annotated[list[StopString], Meta(max_length=16)]


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`; `is_open`: without `low` itself."""

    low: float
    high: float
    is_open: bool = False

    @classmethod
    def of(cls, kind: Type) -> Interval | None:
        """What a number, or the length of a text or a collection, must lie in; None for other types."""
        match kind:
            case IntType() | FloatType():
                low = kind.ge if kind.gt is None else kind.gt
                return cls(_or(low, -inf), _or(kind.le, inf), kind.gt is not None)
            case StrType() | ListType() | DictType():
                return cls(_or(kind.min_length, 0), _or(kind.max_length, inf))
        return None

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.is_open and value == self.low)

    def __str__(self) -> str:
        return f"{'more than' if self.is_open else 'at least'} {self.low:.10g} and at most {self.high:.10g}"


def _or(bound: float | None, default: float) -> float:
    return default if bound is None else bound


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A struct whose fields are checked against their types when it is made in Python, as when it is decoded.

    Raises:
        InvalidRequest: names the field, the value and the bound.
    """

    def __post_init__(self) -> None:
        for field in _fields_of(type(self)):
            value = getattr(self, field.name)
            if value is not field.default:
                _check(field.name, value, field.type)


@cache
def _fields_of(kind: type[msgspec.Struct]) -> tuple[Field, ...]:
    described = type_info(kind)
    assert isinstance(described, StructType)
    return described.fields


# What stands for each type in Python, and in words.
_PYTHON: dict[type[Type], tuple[type | tuple[type, ...], str]] = {
    BoolType: (bool, "true or false"),
    IntType: (int, "an integer"),
    FloatType: ((int, float), "a number"),
    StrType: (str, "a string"),
    ListType: ((list, tuple), "a list"),
    DictType: (dict, "a map"),
    NoneType: (type(None), "nothing"),
    LiteralType: (str, "a word"),
}


def _check(name: str, value: object, kind: Type) -> None:
    kinds = kind.types if isinstance(kind, UnionType) else (kind,)
    for one in kinds:
        if isinstance(value, _PYTHON[type(one)][0]) and isinstance(value, bool) == isinstance(one, BoolType):
            return _check_bounds(name, value, one)
    words = " or ".join(_PYTHON[type(one)][1] for one in kinds)
    raise InvalidRequest(f"{name} must be {words}, not {type(value).__name__}", param=name, code="invalid_type")


def _check_bounds(name: str, value: Any, kind: Type) -> None:
    interval = Interval.of(kind)
    is_number = isinstance(value, int | float)
    if interval is not None and (value if is_number else len(value)) not in interval:
        what = f"is {_short(value)}" if is_number else f"has a length of {len(value)}"
        must = "it must be" if is_number else "allowed is"
        raise InvalidRequest(f"{name} {what}; {must} {interval}", param=name, code="invalid_value")
    match kind:
        case LiteralType() if value not in kind.values:
            words = " or ".join(map(repr, kind.values))
            raise InvalidRequest(
                f"{name} is {value[:64]!r}; the only word it takes is {words}", param=name, code="invalid_value"
            )
        case ListType():
            for item in value:
                _check(name, item, kind.item_type)
        case DictType():
            for key, item in value.items():
                _check(name, key, kind.key_type)
                _check(name, item, kind.value_type)


def _short(number: float) -> str:
    # Python refuses to spell out integers of thousands of digits.
    return str(number) if not isinstance(number, int) or abs(number) < 10**30 else "a number of many digits"
