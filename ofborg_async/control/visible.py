"""Text that others wrote, made safe to look at: nothing in it moves a cursor or turns the reading direction."""

from __future__ import annotations

import re
import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SUSPECT = re.compile(r"[^ -~]")


def visible(text: str) -> str:
    r"""The same text with control, format and unassigned characters written as escapes (``\x1b``, ``\u202e``)."""
    return _SUSPECT.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")
