"""Damaged recordings: a job of the right shape, or UndecodableError and nothing else."""

from __future__ import annotations

from copy import deepcopy
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import JOBS, SWAPS, damaged

from ofborg_async.errors import UndecodableError
from ofborg_async.wire.decode import decode_job
from ofborg_async.wire.encode import encode_job

LIMIT = 1 << 20


@settings(max_examples=1000)
@given(st.sampled_from(JOBS), st.randoms(use_true_random=False))
def test_a_damaged_recording_is_a_job_or_undecodable(job: dict[str, object], random: Random) -> None:
    body = damaged(job, random)
    decoded, fault = None, ""
    try:
        decoded = decode_job(body, max_bytes=LIMIT)
    except UndecodableError as error:
        fault = str(error)
    assert len(fault.encode()) < 300
    assert (decoded is None) == bool(fault)
    if decoded is not None:
        assert decode_job(encode_job(decoded), max_bytes=LIMIT) == decoded


def test_no_damage_is_left_in_what_others_are_damaged_with() -> None:
    before, random = deepcopy(SWAPS), Random(1)
    for _ in range(2000):
        damaged(JOBS[0], random)
    assert before == SWAPS
