"""Numbers as people read them, and log bytes made safe for a terminal."""

from __future__ import annotations

import codecs
import re

from ofborg_async.control.visible import visible

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# An escape sequence that sets colours (ECMA-48, SGR), whole or cut off at the end of a chunk.
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_CUT_COLOUR = re.compile(r"\x1b(?:\[[0-9;:]{0,32})?\Z")
_UNSAFE = re.compile(r"[^\n\t -~]")


def clock(seconds: float) -> str:
    """A running time: ``0:07``, ``12:34``, ``6:00:00``, ``2d03:15:00``."""
    whole = max(0, int(seconds))
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days}d{hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span(seconds: float) -> str:
    """A length of time in one or two units: ``0.5s``, ``12s``, ``3m05s``, ``2h07m``, ``4d03h``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}".removesuffix(".0") + "s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"


def size(count: float) -> str:
    """Bytes in the unit that gives the fewest digits: ``512 MiB``, ``48.0 GiB``."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit < 3 else f"{count:.1f} {_UNITS[unit]}"


def minute(moment: str) -> str:
    """An RFC 3339 UTC text to the minute, ``2025-06-01 09:05Z``; what is none is shown as it is."""
    return f"{moment[:10]} {moment[11:16]}Z" if len(moment) >= 20 and moment.endswith("Z") else visible(moment)


class TerminalText:
    """Turns a stream of log bytes into text that a terminal can show.

    Colours are dropped; every other control character is written as an escape. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, chunk: bytes, *, final: bool = False) -> str:
        """The text of a chunk; the cut-off end of a sequence is kept for the next one unless ``final``."""
        text = self._rest + self._decoder.decode(chunk, final)
        self._rest = ""
        if not final and (cut := _CUT_COLOUR.search(text)):
            self._rest = cut[0]
            text = text[: cut.start()]
        # One CR before the LF is what a Windows tool prints; it moves nothing.
        return _UNSAFE.sub(lambda match: visible(match[0]), _COLOUR.sub("", text).replace("\r\n", "\n"))
