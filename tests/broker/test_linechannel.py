"""Frames in bulk are those that pamqp makes one by one; confirms are counted whatever their order."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from ofborg_async.broker.linechannel import WINDOW_BYTES, WINDOW_MESSAGES, BulkFrames, Window, _parts
from ofborg_async.model.job import Address

PROPERTIES = commands.Basic.Properties(content_type="application/json", delivery_mode=2)


def one_by_one(to: Address, channel: int, frame_max: int, bodies: list[bytes]) -> bytes:
    pieces = []
    for body in bodies:
        pieces.append(frame.marshal(commands.Basic.Publish(exchange=to.exchange, routing_key=to.routing_key), channel))
        pieces.append(frame.marshal(ContentHeader(body_size=len(body), properties=PROPERTIES), channel))
        most = frame_max - 8 if frame_max else max(1, len(body))
        pieces += [
            frame.marshal(ContentBody(body[offset : offset + most]), channel) for offset in range(0, len(body), most)
        ]
    return b"".join(pieces)


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.integers(min_value=1, max_value=65_535),
    st.sampled_from([0, 16, 24, 40, 131_072]),
    st.text("abcdefgh.#-", max_size=20),
    st.text(max_size=40),
)
def test_bulk_frames(bodies: list[bytes], channel: int, frame_max: int, exchange: str, key: str) -> None:
    to = Address(exchange, key)
    assert BulkFrames(to, channel, frame_max).marshal(bodies) == one_by_one(to, channel, frame_max, bodies)


@given(st.integers(min_value=1, max_value=60), st.randoms(use_true_random=False), st.booleans())
def test_window(published: int, random: Random, in_bulk: bool) -> None:
    """Against a model: ``confirmed`` is the longest run of confirmed tags from 1 on."""
    window = Window()
    assert window.publish(published) == published
    open_tags = list(range(1, published + 1))
    confirmed: set[int] = set()
    while open_tags:
        tag = random.choice(open_tags)
        multiple = in_bulk and random.random() < 0.3
        window.confirm(tag, multiple=multiple)
        confirmed |= set(range(1, tag + 1)) if multiple else {tag}
        open_tags = [other for other in open_tags if other not in confirmed]
        run = 0
        while run + 1 in confirmed:
            run += 1
        assert window.confirmed == run
    assert window.confirmed == published
    assert not window._beyond


@given(st.lists(st.integers(min_value=0, max_value=300_000), max_size=40))
def test_parts(sizes: list[int]) -> None:
    bodies = [bytes(size) for size in sizes]
    parts = list(_parts(bodies))
    assert [body for part in parts for body in part] == bodies
    for part in parts:
        assert part
        assert len(part) <= WINDOW_MESSAGES // 2
        assert len(part) == 1 or sum(map(len, part)) <= WINDOW_BYTES // 2


def test_many_small_bodies_make_several_parts() -> None:
    assert [len(part) for part in _parts([b""] * (WINDOW_MESSAGES + 1))] == [WINDOW_MESSAGES // 2] * 2 + [1]
