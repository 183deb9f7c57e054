"""A checkpoint's tokenizer: text to token ids and back. Its files are data from strangers and are read as such."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from orcinus.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
# What a decoder prints for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _AddedToken(msgspec.Struct):
    content: str


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    """The keys of tokenizer_config.json that serving needs; all others are ignored."""

    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    chat_template: str | list[_NamedTemplate] | None = None


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Encodes and decodes; holds no state between calls and may be used by several threads.

    Args:
        library: the `tokenizers` object behind it.
        bos_token, eos_token: as the checkpoint's tokenizer configuration names them.
        chat_template: Jinja source; None where the checkpoint has none.
        special_ids: left out of text under `skip_special_tokens`.
        longest_token: in characters.
        byte_values: byte behind each character that a byte-level vocabulary is spelled in; empty for other kinds.
    """

    library: tokenizers.Tokenizer
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None
    special_ids: frozenset[int] = field(repr=False)
    byte_values: dict[str, int] = field(repr=False)
    longest_token: int

    @classmethod
    def load(cls, folder: Path) -> Tokenizer | None:
        """The tokenizer of a checkpoint, or None if it has none: it then serves token ids only.

        Raises:
            CheckpointError: a tokenizer file that is there but can't be used; the message names it.
        """
        file = folder / TOKENIZER_FILE
        if not file.is_file():
            return None
        try:
            library = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception, and only that
            raise CheckpointError(f"{file} is not a tokenizer that can be read: {error}") from error
        library.no_truncation()
        library.no_padding()
        config = _read_config(folder / TOKENIZER_CONFIG_FILE)
        return cls(
            library=library,
            bos_token=_content(config.bos_token),
            eos_token=_content(config.eos_token),
            chat_template=_read_template(folder / CHAT_TEMPLATE_FILE) or _default_template(config),
            special_ids=frozenset(i for i, token in library.get_added_tokens_decoder().items() if token.special),
            byte_values=_byte_values() if _is_byte_level(library) else {},
            longest_token=max(map(len, library.get_vocab(with_added_tokens=True)), default=1),
        )

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, exclusive, added tokens included. The model's own table may be larger."""
        return self.library.get_vocab_size(with_added_tokens=True)

    @property
    def eos_id(self) -> int | None:
        """Id of `eos_token`, if the checkpoint names one that its vocabulary has."""
        return None if self.eos_token is None else self.library.token_to_id(self.eos_token)

    @property
    def bos_id(self) -> int | None:
        """Id of `bos_token`, if the checkpoint names one that its vocabulary has."""
        return None if self.bos_token is None else self.library.token_to_id(self.bos_token)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; with the tokens that the checkpoint puts around every input, if asked."""
        ids: list[int] = self.library.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], int]:
        """Two texts as one input, as the checkpoint joins them: token ids, and where those of type 1 begin (or 0)."""
        encoding = self.library.encode(first, second, add_special_tokens=True)
        return encoding.ids, encoding.type_ids.index(1) if 1 in encoding.type_ids else 0

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of token ids; ids outside the vocabulary have none."""
        return self.library.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def is_silent(self, token: int, *, skip_special_tokens: bool) -> bool:
        """Whether a token never has text: a special one that is skipped, or one outside the vocabulary."""
        return (skip_special_tokens and token in self.special_ids) or self.library.id_to_token(token) is None

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for by itself, for log-probabilities; empty outside the vocabulary."""
        piece = self.library.id_to_token(token)
        if piece is None:
            return b""
        byte = _BYTE_TOKEN.fullmatch(piece)
        if byte:
            return bytes([int(byte[1], 16)])
        if self.byte_values and all(character in self.byte_values for character in piece):
            return bytes(self.byte_values[character] for character in piece)
        return piece.replace("▁", " ").encode()

    def token_text(self, token: int) -> str:
        """`token_bytes` as text, with U+FFFD for what is no character by itself."""
        return self.token_bytes(token).decode(errors="replace")


def _content(token: str | _AddedToken | None) -> str | None:
    return token.content if isinstance(token, _AddedToken) else token


def _read_config(file: Path) -> _TokenizerConfig:
    if not file.is_file():
        return _TokenizerConfig()
    try:
        return msgspec.json.decode(file.read_bytes(), type=_TokenizerConfig)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a tokenizer configuration that can be read: {error}") from error


def _read_template(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read as UTF-8 text: {error}") from error


def _default_template(config: _TokenizerConfig) -> str | None:
    """Of several named templates, the one called `default`."""
    if config.chat_template is None or isinstance(config.chat_template, str):
        return config.chat_template
    return next((named.template for named in config.chat_template if named.name == "default"), None)


def _is_byte_level(library: tokenizers.Tokenizer) -> bool:
    """Whether the decoder reads tokens as bytes; only the serialised form tells what a sequence of decoders holds."""
    decoder: dict[str, Any] | None = msgspec.json.decode(library.to_str()).get("decoder")
    if decoder is None:
        return False
    return any(part["type"] == "ByteLevel" for part in (decoder, *decoder.get("decoders", ())))


def _byte_values() -> dict[str, int]:
    """GPT-2's spelling: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in sorted(printable)} | {chr(256 + i): byte for i, byte in enumerate(others)}
