"""What may reach a terminal: text of a model or a server, where nothing is left that would command the terminal."""

from __future__ import annotations

_CONTROL_PICTURES = 0x2400
_DELETE = 0x7F
_KEPT = "\n\t"
_VISIBLE = {code: _CONTROL_PICTURES + code for code in range(0x20) if chr(code) not in _KEPT}
_VISIBLE |= {_DELETE: 0x2421}
# The second set of control characters has no pictures; 0x9B alone begins an escape sequence.
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """The text with control characters as pictures (␛ for escape), but for ends of lines and tabs."""
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """The same, on one line."""
    return " ".join(visible(text).split())
