from __future__ import annotations

import sys
import tracemalloc
from itertools import pairwise
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofborg_async.process import LineSplitter

LIMIT = 120


def reference(data: bytes, limit: int) -> list[bytes]:
    """The lines of ``data``, as the class says, by the simplest means."""
    pieces = data.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    lines = []
    for piece in pieces:
        line = piece.removesuffix(b"\r")
        if len(line) > limit:
            kept = limit - len(b" [... line cut,  bytes more]") - 19
            line = line[:kept] + b" [... line cut, %d bytes more]" % (len(line) - kept)
        lines.append(line)
    return lines


def split(chunks: list[bytes], limit: int = LIMIT) -> list[bytes]:
    splitter = LineSplitter(limit)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.finish()


pieces = st.one_of(
    st.sampled_from([b"\n", b"\r", b"\r\n", b"\r\r\n", "\u2028".encode(), b"\xff\xfe", b"\x0b\x0c\x1c\x85", b""]),
    st.binary(max_size=8),
    st.integers(0, 300).map(lambda count: b"x" * count),
)


@given(st.lists(pieces, max_size=30), st.data())
def test_any_chunking_of_the_same_bytes_gives_the_same_lines(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=20).map(sorted))
    chunks = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
    lines = split(chunks)
    assert lines == reference(whole, LIMIT)
    assert all(len(line) <= LIMIT for line in lines)


@pytest.mark.parametrize("length", [LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2, 2 * LIMIT, 2 * LIMIT + 1])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n", b"", b"\r"])
@pytest.mark.parametrize("cut", [0, 1, LIMIT, -1, -2])
def test_lines_about_as_long_as_the_limit(length: int, end: bytes, cut: int) -> None:
    data = b"y" * length + end
    assert split([data[:cut], data[cut:]]) == reference(data, LIMIT)


def test_splits_on_newline_only_and_drops_one_carriage_return() -> None:
    data = "a\u2028b\x0bc\x85d\r\r\ne\rf\n\n\xe4".encode() + b"\xff"
    assert split([data]) == ["a\u2028b\x0bc\x85d\r".encode(), b"e\rf", b"", b"\xc3\xa4\xff"]


def test_a_line_that_is_cut_says_how_much_is_missing() -> None:
    limit = 16384
    line = split([b"x" * 100_000 + b"\nnext\n"], limit)[0]
    text, mark = line.split(b" [... line cut, ")
    assert set(text) == {ord("x")}
    assert int(mark.removesuffix(b" bytes more]")) + len(text) == 100_000
    assert len(line) <= limit


def test_a_limit_without_room_for_the_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="line limit of 50 bytes is too small"):
        LineSplitter(50)


@pytest.mark.parametrize("chunk", [b"x" * 262_144, b"x" * 262_143 + b"\r", b"x"])
def test_a_line_of_100_megabytes_costs_no_more_than_the_limit(chunk: bytes) -> None:
    splitter = LineSplitter(16384)
    count = 100_000_000 // max(len(chunk), 250)
    tracemalloc.start()
    try:
        for _ in range(count):
            assert splitter.feed(chunk) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    assert len(splitter.finish()[0]) <= 16384


def test_short_lines_need_no_loop_in_python() -> None:
    splitter = LineSplitter(16384)
    chunk = (b"y" * 80 + b"\n") * 3000 + b"begun"
    calls = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        lines = splitter.feed(chunk)
        lines += splitter.feed(chunk)
    finally:
        sys.setprofile(None)
    assert len(lines) == 6000
    assert calls < 20
