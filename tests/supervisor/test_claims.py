"""The rule for messages that come back, by cases and against a model."""

from __future__ import annotations

from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from ofborg_async.journal import JobKey
from ofborg_async.supervisor.claims import REMEMBERED, Claims, Standing

KEY = JobKey("broker/queue", "request", "0" * 64)


@define
class FakeDelivery:
    queue: str = "queue"
    body: bytes = b""
    redelivered: bool = False
    lost: bool = False
    returns: int = 0

    async def ack(self) -> None: ...

    async def requeue(self) -> None: ...

    async def reject(self) -> None: ...


def test_an_unknown_message_is_new() -> None:
    assert Claims().judge(KEY, redelivered=True) == (Standing.NEW, None)


def test_redelivered_while_it_runs_is_handed_over() -> None:
    claims = Claims()
    claim = claims.claim(KEY, "a1", FakeDelivery())
    assert claims.judge(KEY, redelivered=True) == (Standing.RUNNING, claim)


def test_a_lost_delivery_comes_back_even_if_the_broker_forgot_to_say_so() -> None:
    claims = Claims()
    claim = claims.claim(KEY, "a1", FakeDelivery(lost=True))
    assert claims.judge(KEY, redelivered=False) == (Standing.RUNNING, claim)
    claim.report(1.0)
    assert claims.judge(KEY, redelivered=False) == (Standing.FINISHED, claim)


def test_the_same_message_published_anew_while_the_first_is_alive_is_a_job_of_its_own() -> None:
    claims = Claims()
    first = claims.claim(KEY, "a1", FakeDelivery())
    assert claims.judge(KEY, redelivered=False) == (Standing.NEW, None)
    second = claims.claim(KEY, "a2", FakeDelivery())
    assert first.journal_key != second.journal_key
    claims.settle(first)
    third = claims.claim(KEY, "a3", FakeDelivery())
    assert third.journal_key == KEY


def test_a_settled_message_is_new_again() -> None:
    claims = Claims()
    claim = claims.claim(KEY, "a1", FakeDelivery(lost=True), reported_at=1.0)
    claims.settle(claim)
    claims.settle(claim)
    assert claims.judge(KEY, redelivered=True) == (Standing.NEW, None)


def test_a_message_that_a_killed_broker_brings_back_after_its_acknowledgement_is_no_new_job() -> None:
    claims = Claims()
    claim = claims.claim(KEY, "a1", FakeDelivery())
    claim.report(1.0)
    claims.acknowledged(claim, 1.0)
    for _ in range(2):  # what is acknowledged then can be forgotten as well
        assert claims.judge(KEY, redelivered=True) == (Standing.FINISHED, claim)
        claims.adopt(claim, FakeDelivery(redelivered=True))
        claims.acknowledged(claim, 2.0)
    assert claims.sure(1.5) == ["a1"]
    assert claims.judge(KEY, redelivered=True) == (Standing.FINISHED, claim)


def test_a_copy_is_acknowledged_by_one_only() -> None:
    claims = Claims()
    first, second = FakeDelivery(body=b"1"), FakeDelivery(body=b"2")
    claim = claims.claim(KEY, "a1", first)
    assert claim.take_to_acknowledge() == [first]
    claims.adopt(claim, second)
    assert claim.take_to_acknowledge() == [second]
    assert claim.take_to_acknowledge() == []


def test_published_anew_after_its_acknowledgement_it_is_a_job_and_so_is_what_of_that_comes_back() -> None:
    claims = Claims()
    first = claims.claim(KEY, "a1", FakeDelivery())
    claims.acknowledged(first, 1.0)
    assert claims.judge(KEY, redelivered=False) == (Standing.NEW, None)
    second = claims.claim(KEY, "a2", FakeDelivery())
    assert second.journal_key != first.journal_key  # the journal still has the first
    claims.settle(second)
    assert claims.judge(KEY, redelivered=True) == (Standing.NEW, None)
    assert claims.sure(2.0) == ["a1"]
    assert claims.claim(KEY, "a3", FakeDelivery()).journal_key != first.journal_key  # it could not be told to forget it
    claims.forgotten("a1")
    assert claims.claim(KEY, "a3", FakeDelivery()).journal_key == first.journal_key


def test_the_journal_forgets_an_acknowledged_message_once_and_late() -> None:
    claims = Claims()
    for number in range(REMEMBERED + 2):
        claims.acknowledged(claims.claim(JobKey("queue", str(number), ""), f"a{number}", FakeDelivery()), float(number))
    assert claims.sure(0.5) == ["a0"]
    claims.forgotten("a0")
    assert claims.sure(0.5) == []
    assert len(claims.sure(1e9)) == REMEMBERED + 1
    for attempt_id in claims.sure(1e9):
        claims.forgotten(attempt_id)
    assert claims.sure(1e9) == []
    assert claims.judge(JobKey("queue", "1", ""), redelivered=True) == (Standing.NEW, None)
    assert claims.judge(JobKey("queue", "2", ""), redelivered=True)[0] is Standing.FINISHED


def test_a_virtual_host_may_have_the_sign_that_numbers_identical_messages() -> None:
    key = JobKey("broker:5672/of#1/build-inputs-x", "request", "0" * 64)
    claims = Claims()
    first = claims.claim(key, "a1", FakeDelivery())
    assert claims.judge(key, redelivered=True) == (Standing.RUNNING, first)
    second = claims.claim(key, "a2", FakeDelivery())
    assert second.journal_key.queue == f"{key.queue}#2"


def test_a_message_that_an_earlier_daemon_left_keeps_its_number() -> None:
    """Its place in the journal is taken, also where the first of the identical ones is gone by now."""
    claims = Claims()
    left = JobKey(f"{KEY.queue}#2", KEY.request_id, KEY.body_sha256)
    assert claims.claim(left, "a2", reported_at=1.0).journal_key == left
    assert claims.claim(KEY, "a3", FakeDelivery()).journal_key == KEY


def test_what_never_comes_back_is_forgotten_after_a_day() -> None:
    claims = Claims()
    claims.claim(KEY, "old", FakeDelivery(lost=True), reported_at=1.0)
    claims.expire(0.5)
    assert claims.judge(KEY, redelivered=True)[0] is Standing.FINISHED
    claims.expire(2.0)
    assert claims.judge(KEY, redelivered=True) == (Standing.NEW, None)


def test_a_claim_from_the_journal_matches_the_message_itself() -> None:
    claims = Claims()
    restored = claims.claim(JobKey("broker/queue#2", "request", "0" * 64), "old", reported_at=1.0)
    assert claims.judge(KEY, redelivered=True) == (Standing.FINISHED, restored)


@given(st.lists(st.sampled_from(["fresh", "lose", "return", "finish"]), max_size=30))
def test_each_lost_delivery_absorbs_exactly_one_message(script: list[str]) -> None:
    claims = Claims()
    alive: list[FakeDelivery] = []
    in_the_air = builds = published = 0
    for step in script:
        if step == "lose" and alive:
            alive.pop(0).lost = True
            in_the_air += 1
        if step == "fresh" and not in_the_air:
            published += 1
        if step in {"fresh", "return"} and (step == "fresh" or in_the_air):
            delivery = FakeDelivery(redelivered=step == "return")
            if step == "fresh" and in_the_air:
                continue  # indistinguishable from the lost one by design
            standing, claim = claims.judge(KEY, redelivered=delivery.redelivered)
            in_the_air -= step == "return"
            if claim is None:
                assert standing is Standing.NEW
                builds += 1
                claims.claim(KEY, f"a{builds}", delivery)
            else:
                claims.adopt(claim, delivery)
            alive.append(delivery)
    assert builds == published
