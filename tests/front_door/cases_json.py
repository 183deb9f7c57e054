"""What isn't JSON, isn't UTF-8, or is JSON that two readers would read differently (RELIABILITY.md S9)."""

from __future__ import annotations

from cases import ANYTHING, CHAT, Case

_REST = b', "prompt": "hi", "max_tokens": 1}'
_WHOLE = b'{"prompt": "hi", "max_tokens": 1}'


def _with(value: bytes, name: bytes = b"x") -> bytes:
    """A good request with one more field."""
    return b'{"' + name + b'": ' + value + _REST


_NOT_JSON = {
    "empty": b"",
    "spaces": b" \r\n\t",
    "nul": b"\0",
    "word": b"prompt",
    "form": b"prompt=hi&max_tokens=1",
    "xml": b"<prompt>hi</prompt>",
    "yaml": b"prompt: hi\nmax_tokens: 1\n",
    "json-lines": _WHOLE + b"\n" + _WHOLE,
    "xssi-prefix": b")]}'\n" + _WHOLE,
    "jsonp": b"f(" + _WHOLE + b")",
    "pickle": b"\x80\x04\x95\x1c\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\0" * 10,
    "multipart": b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhi\r\n--x--\r\n',
    "open-brace": b"{",
    "close-brace": b"}",
    "key-only": b'{"prompt"',
    "colon-only": b'{"prompt":',
    "open-string": b'{"prompt": "hi',
    "open-escape": b'{"prompt": "hi\\',
    "open-unicode-escape": b'{"prompt": "hi\\u00',
    "no-end": b'{"prompt": "hi", "max_tokens": 1',
    "open-list": b'{"prompt": [1, 2',
    "wrong-bracket": b'{"prompt": [1, 2}, "max_tokens": 1]',
    "trailing-word": _WHOLE + b" x",
    "trailing-object": _WHOLE + b"{}",
    "trailing-brace": _WHOLE + b"}",
    "trailing-nul": _WHOLE + b"\0",
    "trailing-comment": _WHOLE + b" // end",
    "comment": b'{/* prompt */ "prompt": "hi"}',
    "hash-comment": b'{"prompt": "hi" # text\n}',
    "trailing-comma": b'{"prompt": "hi", "max_tokens": 1,}',
    "leading-comma": b'{, "prompt": "hi"}',
    "two-commas": b'{"prompt": "hi",, "max_tokens": 1}',
    "no-comma": b'{"prompt": "hi" "max_tokens": 1}',
    "no-colon": b'{"prompt" "hi"}',
    "equals-sign": b'{"prompt" = "hi"}',
    "single-quotes": b"{'prompt': 'hi'}",
    "bare-key": b'{prompt: "hi"}',
    "number-key": b'{1: 2, "prompt": "hi"}',
    "null-key": b'{null: 2, "prompt": "hi"}',
    "newline-in-string": b'{"prompt": "a\nb"}',
    "nul-in-string": b'{"prompt": "a\0b"}',
    "tab-in-string": b'{"prompt": "a\tb"}',
    "hex-escape": b'{"prompt": "\\x41"}',
    "short-escape": b'{"prompt": "\\u12"}',
    "wrong-escape": b'{"prompt": "\\u12g4"}',
    "braces-escape": b'{"prompt": "\\u{41}"}',
    "unknown-escape": b'{"prompt": "\\a"}',
}
_NOT_VALUES = {
    "nan": b"NaN",
    "lower-nan": b"nan",
    "infinity": b"Infinity",
    "minus-infinity": b"-Infinity",
    "inf": b"inf",
    "minus": b"-",
    "plus": b"+1",
    "leading-zero": b"01",
    "leading-zeros": b"-00",
    "leading-point": b".5",
    "trailing-point": b"1.",
    "half-exponent": b"1e",
    "signed-exponent": b"1e+",
    "hexadecimal": b"0x1",
    "underscore": b"1_0",
    "python-true": b"True",
    "python-none": b"None",
    "undefined": b"undefined",
    "upper-null": b"NULL",
    "nothing": b"",
}
_TWINS = {
    "same": b'{"prompt": "hi", "max_tokens": 1, "prompt": "hi"}',
    "other-value": b'{"prompt": "hi", "max_tokens": 1, "max_tokens": 2}',
    "escaped": b'{"prompt": "hi", "max_tokens": 1, "\\u0070rompt": "ho"}',
    "unknown": b'{"prompt": "hi", "max_tokens": 1, "x": 1, "x": 1}',
    "nested": b'{"prompt": "hi", "max_tokens": 1, "x": {"a": 1, "a": 1}}',
    "in-list": b'{"prompt": "hi", "max_tokens": 1, "x": [{}, {"a": 1, "b": 2, "a": 3}]}',
    "in-bias": b'{"prompt": "hi", "max_tokens": 1, "logit_bias": {"5": 1, "5": -1}}',
    "empty-key": b'{"prompt": "hi", "max_tokens": 1, "": 1, "": 2}',
    "long-key": b'{"prompt": "hi", "max_tokens": 1, "' + b"k" * 100_000 + b'": 1, "' + b"k" * 100_000 + b'": 2}',
    "model": b'{"model": "orcinus-tiny", "prompt": "hi", "max_tokens": 1, "model": "other"}',
}
_BOUNDS = {
    "lists-65": _with(b"[" * 64 + b"]" * 64),
    "objects-65": _with(b'{"a":' * 64 + b"1" + b"}" * 64),
    "mixed-66": _with(b'[{"a":' * 33 + b"1" + b"}]" * 33),
    "lists-100000": _with(b"[" * 100_000 + b"]" * 100_000),
    "objects-100000": _with(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "open-lists-100000": b"[" * 100_000,
    "open-objects-100000": b'{"a":' * 100_000,
    "deep-prompt": _with(b"[" * 70 + b"1" + b"]" * 70, b"y"),
    "deep-after-escapes": _with(b'["\\"", "\\\\", ' + b"[" * 64 + b"]" * 64 + b"]"),
    "nodes-1000001": _with(b"[" + b"0," * 1_000_000 + b"0]"),
    "digits-65": _with(b"1" * 65),
    "digits-1000": _with(b"9" * 1000),
    "digits-1000000": _with(b"9" * 1_000_000),
    "minus-digits-1000": _with(b"-" + b"9" * 1000, b"seed"),
    "fraction-1000": _with(b"0." + b"3" * 1000, b"temperature"),
    "exponent-1000": _with(b"1e" + b"9" * 1000, b"temperature"),
    "zeros-1000": _with(b"0." + b"0" * 1000 + b"e1000", b"temperature"),
    "digits-in-list": _with(b"[1, " + b"1" * 100 + b"]"),
}
# Numbers that are JSON, and that no field takes: named or not, they are the client's fault.
_TOO_LARGE = {
    "temperature-1e400": _with(b"1e400", b"temperature"),
    "temperature-minus-1e400": _with(b"-1e400", b"temperature"),
    "top_p-1e309": _with(b"1e309", b"top_p"),
    "n-1e400": _with(b"1e400", b"n"),
    "n-1e18": _with(b"1e18", b"n"),
    "seed-10^40": _with(b"1" + b"0" * 40, b"seed"),
    "max_tokens-2^63": b'{"prompt": "hi", "max_tokens": 9223372036854775808}',
    "max_tokens-2^64": b'{"prompt": "hi", "max_tokens": 18446744073709551616}',
    "max_tokens-minus-2^63": b'{"prompt": "hi", "max_tokens": -9223372036854775809}',
    "bias-1e400": _with(b'{"5": 1e400}', b"logit_bias"),
}
_NOT_OBJECTS = {
    "null": b"null",
    "true": b"true",
    "number": b"5",
    "string": b'"prompt"',
    "list": b"[]",
    "list-of-requests": b"[" + _WHOLE + b"]",
    "list-of-pairs": b'[["prompt", "hi"]]',
}
_NOT_UTF8 = {
    "ff": b'{"prompt": "\xff"}',
    "latin-1": b'{"prompt": "caf\xe9"}',
    "in-a-key": b'{"\xff": 1' + _REST,
    "in-an-unknown-value": _with(b'"\xff"'),
    "in-an-unknown-key-below": _with(b'{"\xc3\x28": 1}'),
    "outside-strings": b'{"prompt": "hi"}\xff',
    "lone-continuation": b'{"prompt": "\x80"}',
    "cut-sequence": b'{"prompt": "\xe2\x82"}',
    "overlong-slash": b'{"prompt": "\xc0\xaf"}',
    "overlong-nul": b'{"prompt": "\xc0\x80"}',
    "overlong-quote": b'{"prompt": "\xc0\xa2}',
    "overlong-three": b'{"prompt": "\xe0\x80\xaf"}',
    "surrogate-bytes": b'{"prompt": "\xed\xa0\x80"}',
    "cesu-8": b'{"prompt": "\xed\xa0\xbd\xed\xb8\x80"}',
    "beyond-unicode": b'{"prompt": "\xf4\x90\x80\x80"}',
    "five-bytes": b'{"prompt": "\xf8\x88\x80\x80\x80"}',
    "bom": b"\xef\xbb\xbf" + _WHOLE,
    "utf-16": _WHOLE.decode().encode("utf-16"),
    "utf-16-le": _WHOLE.decode().encode("utf-16-le"),
    "utf-16-be": _WHOLE.decode().encode("utf-16-be"),
    "utf-32": _WHOLE.decode().encode("utf-32"),
    "utf-7-bom": b"+/v8-" + _WHOLE,
    "ebcdic": _WHOLE.decode().encode("cp037"),
}
# An escape for half of a character is JSON, but no text; nothing could tokenise it.
_HALF_CHARACTERS = {
    "high": b'{"prompt": "\\ud800", "max_tokens": 1}',
    "low": b'{"prompt": "\\udc00", "max_tokens": 1}',
    "high-and-letter": b'{"prompt": "\\ud83dx", "max_tokens": 1}',
    "reversed": b'{"prompt": "\\ude00\\ud83d", "max_tokens": 1}',
    "high-high": b'{"prompt": "\\ud83d\\ud83d", "max_tokens": 1}',
    "in-stop": b'{"prompt": "hi", "max_tokens": 1, "stop": "\\udfff"}',
    "in-user": b'{"prompt": "hi", "max_tokens": 1, "user": "\\ud800"}',
    "in-model": b'{"prompt": "hi", "max_tokens": 1, "model": "\\ud800"}',
}


def _cases(group: str, bodies: dict[str, bytes], code: str | None = None, param: str | None = None) -> list[Case]:
    return [Case(name=f"{group}-{name}", body=body, code=code, param=param) for name, body in bodies.items()]


CASES = [
    *_cases("not-json", _NOT_JSON),
    *_cases("value", {name: _with(value, b"temperature") for name, value in _NOT_VALUES.items()}),
    *_cases("unknown-value", {name: _with(value) for name, value in _NOT_VALUES.items()}),
    *_cases("twins", _TWINS, param=ANYTHING),
    *_cases("bound", _BOUNDS),
    *_cases("too-large", _TOO_LARGE, ANYTHING, ANYTHING),
    *_cases("not-an-object", _NOT_OBJECTS, "invalid_type"),
    *_cases("utf-8", _NOT_UTF8),
    *_cases("half", _HALF_CHARACTERS, ANYTHING, ANYTHING),
    Case(
        name="half-in-message",
        path=CHAT,
        body=b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}',
        code=ANYTHING,
        param=ANYTHING,
    ),
    Case(name="nothing-but-a-brace", path=CHAT, body=b"{"),
    *(
        Case(name=f"missing-{path}", path=path, body=b"{}", code="missing_required_parameter", param=param)
        for path, param in (
            ("/v1/completions", "prompt"),
            (CHAT, "messages"),
            ("/v1/embeddings", "input"),
            ("/classify", "input"),
            ("/score", "text_1"),
            ("/rerank", "query"),
            ("/tokenize", "prompt"),
            ("/detokenize", "tokens"),
        )
    ),
]
