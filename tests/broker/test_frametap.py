"""Whole frames, cut anywhere: what goes on to the library, and what is noted."""

from __future__ import annotations

import asyncio
import struct
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from ofborg_async.broker.frametap import ConnectionClosedByBroker, FrameTap


async def tapped(stream: bytes, cuts: list[int]) -> tuple[FrameTap, bytes, list[bool]]:
    """What comes out of a tap that is fed ``stream`` in pieces and then its end."""
    blocked: list[bool] = []
    tap = FrameTap(on_blocked=blocked.append)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        tap.feed_data(stream[start:end])
    tap.feed_eof()
    return tap, await tap.read(), blocked


def through_tap(stream: bytes, cuts: list[int] | None = None) -> tuple[FrameTap, bytes, list[bool]]:
    return asyncio.run(tapped(stream, cuts or []))


def parsed(stream: bytes) -> list[tuple[int, object]]:
    """The frames of a stream as pamqp sees them."""
    frames: list[tuple[int, object]] = []
    while stream:
        consumed, channel, value = frame.unmarshal(stream)
        frames.append((channel, value))
        stream = stream[consumed:]
    return frames


def content(channel: int, body: bytes, **properties: object) -> bytes:
    header = ContentHeader(body_size=len(body), properties=commands.Basic.Properties(**properties))  # type: ignore[arg-type]
    return frame.marshal(header, channel) + (frame.marshal(ContentBody(body), channel) if body else b"")


DELIVERY = frame.marshal(
    commands.Basic.Deliver(
        consumer_tag="mac-builder", delivery_tag=2**40, redelivered=True, exchange="build-jobs", routing_key="key"
    ),
    7,
)
GOT = frame.marshal(
    commands.Basic.GetOk(delivery_tag=9, redelivered=True, exchange="e", routing_key="k", message_count=3), 8
)
RETURN = frame.marshal(commands.Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="e", routing_key="k"), 7)
STREAM = (
    frame.marshal(Heartbeat(), 0)
    + DELIVERY
    + content(7, b"job" * 100, message_id="1", content_type="x")
    + GOT
    + content(8, b"", message_id="2")
    + RETURN
    + content(7, b"result", message_id="3")
    + frame.marshal(commands.Basic.Ack(delivery_tag=1, multiple=True), 7)
    + frame.marshal(commands.Connection.Blocked(reason="low on memory"), 0)
    + frame.marshal(commands.Connection.Unblocked(), 0)
    + frame.marshal(
        commands.Connection.Close(reply_code=320, reply_text="CONNECTION_FORCED - ü", class_id=0, method_id=0), 0
    )
)


@given(st.lists(st.integers(min_value=0, max_value=10_000), max_size=20))
def test_the_same_comes_out_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    tap, out, blocked = through_tap(STREAM, cuts)
    assert out == through_tap(STREAM)[1]
    assert blocked == [True, False]
    assert tap.closed == ConnectionClosedByBroker(320, "CONNECTION_FORCED - ü")
    assert tap.garbage == b""


def test_what_goes_on() -> None:
    frames = parsed(through_tap(STREAM)[1])
    assert len(frames) == len(parsed(STREAM))
    deliver, deliver_header, deliver_body = (value for _, value in frames[1:4])
    assert isinstance(deliver, commands.Basic.Deliver)
    assert (deliver.consumer_tag, deliver.delivery_tag, deliver.redelivered) == ("mac-builder", 2**40, True)
    assert (deliver.exchange, deliver.routing_key) == ("", "")
    assert isinstance(deliver_header, ContentHeader)
    assert deliver_header.body_size == 300
    assert deliver_header.properties == commands.Basic.Properties()
    assert isinstance(deliver_body, ContentBody)
    assert deliver_body.value == b"job" * 100
    got, got_header = (value for _, value in frames[4:6])
    assert isinstance(got, commands.Basic.GetOk)
    assert (got.delivery_tag, got.redelivered, got.routing_key, got.message_count) == (9, True, "", 3)
    assert isinstance(got_header, ContentHeader)
    assert got_header.properties == commands.Basic.Properties()
    returned, returned_header = (value for _, value in frames[6:8])
    assert isinstance(returned, commands.Basic.Return)
    assert returned.routing_key == "k"
    assert isinstance(returned_header, ContentHeader)
    assert returned_header.properties.message_id == "3", "a return is told by its message_id"


@given(st.binary(max_size=200), st.binary(max_size=100), st.lists(st.integers(min_value=0), max_size=5))
def test_no_bytes_in_a_delivery_are_decoded(properties: bytes, key: bytes, cuts: list[int]) -> None:
    method = struct.pack(">HH", 60, 60) + b"\x03tag" + struct.pack(">QB", 5, 0) + b"\0" + bytes([len(key)]) + key
    header = struct.pack(">HHQ", 60, 0, 0) + properties
    stream = b"".join(
        struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce" for kind, payload in ((1, method), (2, header))
    )
    (_, deliver), (_, content_header) = parsed(through_tap(stream, cuts)[1])
    assert isinstance(deliver, commands.Basic.Deliver)
    assert deliver.delivery_tag == 5
    assert isinstance(content_header, ContentHeader)
    assert content_header.properties == commands.Basic.Properties()


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(min_value=0), max_size=5))
def test_no_input_ends_it_with_an_exception(data: bytes, cuts: list[int]) -> None:
    tap, out, _ = through_tap(data, cuts)
    if data[0] not in (1, 2, 3, 8):
        assert tap.garbage
        assert out == b""


def test_bytes_that_are_no_frame_end_the_stream() -> None:
    tap, out, _ = through_tap(frame.marshal(Heartbeat(), 0) + b"HTTP/1.1 400", [10, 14])
    assert out == b"" or parsed(out)
    assert tap.garbage.startswith(b"HT")


def test_a_cut_frame_goes_on_as_it_is() -> None:
    _, out, _ = through_tap(DELIVERY[:20])
    assert out == DELIVERY[:20]


@given(count=st.integers(2**32, 2**63 - 1), other=st.text(max_size=20), at=st.integers(0, 60))
def test_of_a_deliverys_headers_the_count_of_returns_alone_goes_on(count: int, other: str, at: int) -> None:
    headers = {"x-first": other, "x-delivery-count": count, "x-last": other}
    whole = content(7, b"", headers=headers, message_id="m")
    _, out, _ = through_tap(DELIVERY + whole)
    (_, _), (_, header) = parsed(out)
    assert isinstance(header, ContentHeader)
    assert header.properties.headers == {"x-delivery-count": count}
    assert header.properties.message_id is None
    end = whole.index(b"x-delivery-count") + at
    if end < len(whole) - 1:  # a frame whose payload ends early has no whole count, or is the same
        cut = struct.pack(">BHI", 2, 7, end - 7) + whole[7:end] + b"\xce"
        _, out, _ = through_tap(DELIVERY + cut)
        parsed(out)
