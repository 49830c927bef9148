from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofborg_async.cli.moments import parse_duration, parse_since
from ofborg_async.cli.text import TerminalText, clock, minute, size, span
from ofborg_async.control.visible import visible

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("1h30m", 5400), ("1d2h3m4s", 93784)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "2x", "-2h", "h", "2h 3m", "3m2h", "0s", "9999d", "\uff11h", "2h\n"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"no duration|too (short|long)"):
        parse_duration(text)


def test_since() -> None:
    assert parse_since("2h", NOW) == NOW - timedelta(hours=2)
    assert parse_since("2025-05-31T12:00Z", NOW) == NOW - timedelta(days=1)
    assert parse_since("2025-05-31", NOW).tzinfo is not None
    with pytest.raises(ValueError, match="is no time"):
        parse_since("yesterday", NOW)


def test_numbers() -> None:
    assert [clock(s) for s in (7, 754.9, 21600, 184500)] == ["0:07", "12:34", "6:00:00", "2d03:15:00"]
    assert [span(s) for s in (0, 0.5, 12, 185, 7620, 356400)] == ["0s", "0.5s", "12s", "3m05s", "2h07m", "4d03h"]
    assert [size(b) for b in (0, 1023, 512 * 1024**2, 48 * 1024**3)] == ["0 B", "1023 B", "512 MiB", "48.0 GiB"]
    assert minute("2025-06-01T09:05:59.000Z") == "2025-06-01 09:05Z"
    assert minute("\x1b") == r"\x1b"


def test_hostile_text_is_shown_as_escapes() -> None:
    assert visible("a\x1b[2J\u202e\u2028\x9b\ud800é漢") == r"a\x1b[2J\u202e\u2028\x9b\ud800é漢"


def test_colours_go_and_the_rest_shows() -> None:
    log = b"\x1b[31;1mred\x1b[0m\r\nbell\x07 \x1b[2J tab\tend \xff\xc3\xa9\n"
    assert TerminalText().feed(log, final=True) == "red\nbell\\x07 \\x1b[2J tab\tend \ufffdé\n"


@given(
    chunks=st.lists(st.binary(max_size=12) | st.sampled_from([b"\x1b[", b"3", b"1m", b"\x1b", b"\xe6\xbc", b"\xa2\n"]))
)
def test_no_control_character_reaches_the_terminal(chunks: list[bytes]) -> None:
    text = TerminalText()
    shown = "".join(text.feed(chunk) for chunk in chunks) + text.feed(b"", final=True)
    assert all(character.isprintable() or character in "\n\t" for character in shown)


@given(st.lists(st.sampled_from([b"\x1b[31m", b"ab", b"\xe6\xbc\xa2", b"\n", b"\x07"])), st.integers(1, 7))
def test_chunks_do_not_change_what_is_shown(parts: list[bytes], length: int) -> None:
    log = b"".join(parts)
    text = TerminalText()
    cut = "".join(text.feed(log[i : i + length]) for i in range(0, len(log), length)) + text.feed(b"", final=True)
    assert cut == TerminalText().feed(log, final=True)
