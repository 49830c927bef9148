"""The wire room against the recordings, the wire document's rules and hostile bodies."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofborg_async.errors import UndecodableError
from ofborg_async.model.job import DEFAULT_LOGS, Address, BuildJob, PullRequest, Repo, Subset
from ofborg_async.model.result import BuildResult, BuildStatus, LogStart, Status, UnexpectedError
from ofborg_async.wire.decode import decode_job
from ofborg_async.wire.encode import LogLineEncoder, encode_job, encode_log_start, encode_result, last_lines

RECORDINGS = sorted((Path(__file__).parent.parent / "data" / "recordings").glob("*.json"))
LIMIT = 1 << 20


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def job_document() -> dict[str, Any]:
    return {
        "repo": {"owner": "o", "name": "n", "full_name": "o/n", "clone_url": "https://example.org/o/n"},
        "pr": {"target_branch": "master", "number": 7, "head_sha": "a" * 40},
        "attrs": ["hello"],
        "request_id": "r",
    }


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_every_recorded_message_is_rebuilt_byte_for_byte(path: Path) -> None:
    count = 0
    for case in json.loads(path.read_text()).values():
        job = decode_job(compact(case["job"]), max_bytes=LIMIT)
        for message in case["published"]:
            body = message["body"]
            if "line_number" in body:
                encoder = LogLineEncoder(
                    system=body["system"], identity=body["identity"], attempt_id=body["attempt_id"]
                )
                built = encoder.encode(body["line_number"], [body["output"].encode()])[0]
            elif "tag" in body:
                built = encode_result(
                    BuildResult(
                        repo=job.repo,
                        pr=job.pr,
                        system=body["system"],
                        output=tuple(body["output"]),
                        attempt_id=body["attempt_id"],
                        request_id=job.request_id,
                        status=BuildStatus(body["status"]),
                        skipped_attrs=None if body["skipped_attrs"] is None else tuple(body["skipped_attrs"]),
                        attempted_attrs=None if body["attempted_attrs"] is None else tuple(body["attempted_attrs"]),
                    )
                )
            else:
                lists = {key: tuple(body[key]) for key in ("attempted_attrs", "skipped_attrs")}
                built = encode_log_start(
                    LogStart(system=body["system"], identity=body["identity"], attempt_id=body["attempt_id"], **lists)
                )
            assert built == compact(body)
            count += 1
    assert count > 100


def test_defaults_and_pairs() -> None:
    job = decode_job(compact(job_document()), max_bytes=LIMIT)
    assert (job.logs, job.statusreport, job.subset) == (DEFAULT_LOGS, Address("build-results", ""), None)
    document = job_document() | {"logs": [None, None], "statusreport": ["x", None], "subset": "NixOS", "unknown": [1]}
    job = decode_job(compact(document), max_bytes=LIMIT)
    assert (job.logs, job.statusreport, job.subset) == (Address("", ""), Address("x", ""), Subset.NIXOS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attrs": "hello"}, "attrs"),
        ({"attrs": [1]}, "attrs[0]"),
        ({"attrs": None}, "attrs"),
        ({"request_id": None}, "request_id"),
        ({"subset": "Darwin"}, "subset"),
        ({"logs": ["a"]}, "logs"),
        ({"logs": ["a", "b", "c"]}, "logs"),
        ({"logs": ["a", 5]}, "logs[1]"),
        ({"statusreport": ["x" * 256, ""]}, "statusreport[0]"),
        ({"pr": {"number": -1, "head_sha": ""}}, "pr.number"),
        ({"pr": {"number": 1.5, "head_sha": ""}}, "pr.number"),
        ({"pr": {"number": 1.0, "head_sha": ""}}, "pr.number"),
        ({"pr": {"number": True, "head_sha": ""}}, "pr.number"),
        ({"pr": {"number": 2**64, "head_sha": ""}}, "pr.number"),
        ({"pr": {"number": "1", "head_sha": ""}}, "pr.number"),
        ({"pr": {"number": 1}}, "pr.head_sha"),
        ({"pr": []}, "pr"),
        ({"repo": {"owner": "o", "name": "n", "full_name": "f"}}, "repo.clone_url"),
    ],
)
def test_wrong_types_name_the_key(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UndecodableError) as caught:
        decode_job(compact(job_document() | change), max_bytes=LIMIT)
    assert str(caught.value).startswith(named + " ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{}",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"attrs": ["\\ud800"]}',
        compact(job_document())[:-1],
        compact(job_document()).replace(b'"r"', b'"\\udfff"'),
        compact(job_document()).replace(b'"number":7', b'"number":' + b"9" * 5000),
        b" " * (LIMIT + 1),
    ],
    ids=range(16),
)
def test_hostile_bodies_are_undecodable(body: bytes) -> None:
    with pytest.raises(UndecodableError):
        decode_job(body, max_bytes=LIMIT)


def test_brackets_inside_strings_do_not_count_as_depth() -> None:
    document = job_document() | {"attrs": ["[" * 500, '\\"' + "{" * 500]}
    assert decode_job(compact(document), max_bytes=LIMIT).attrs == ("[" * 500, '\\"' + "{" * 500)


@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["repo", "pr", "attrs", "x"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_is_a_job_or_undecodable(body: bytes) -> None:
    with contextlib.suppress(UndecodableError):
        decode_job(body, max_bytes=LIMIT)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        BuildJob,
        repo=st.builds(Repo, TEXT, TEXT, TEXT, TEXT),
        pr=st.builds(PullRequest, st.integers(0, 2**64 - 1), TEXT, st.none() | TEXT),
        attrs=st.lists(TEXT, max_size=4).map(tuple),
        request_id=TEXT,
        subset=st.none() | st.sampled_from(Subset),
        logs=st.builds(Address, TEXT, TEXT),
        statusreport=st.builds(Address, TEXT, TEXT),
    )
)
def test_a_submitted_job_comes_back_the_same(job: BuildJob) -> None:
    assert decode_job(encode_job(job), max_bytes=LIMIT) == job


def result(output: tuple[str, ...], status: Status) -> BuildResult:
    job = decode_job(compact(job_document()), max_bytes=LIMIT)
    return BuildResult(
        repo=job.repo,
        pr=job.pr,
        system="s",
        output=output,
        attempt_id="a",
        request_id="r",
        status=status,
        skipped_attrs=(),
        attempted_attrs=None,
    )


def test_unexpected_error_status() -> None:
    document = json.loads(encode_result(result((), UnexpectedError("why"))))
    assert document["status"] == {"UnexpectedError": {"err": "why"}}
    order = "tag repo pr system output attempt_id request_id status skipped_attrs attempted_attrs"
    assert list(document) == order.split()


def test_output_is_capped_from_its_end() -> None:
    output = json.loads(encode_result(result((*["x" * 16_000] * 9, "the end"), BuildStatus.FAILURE)))["output"]
    assert len(output) == 10
    assert output[-1] == "the end"
    assert len("\n".join(output)) < 65_535


def test_undecodable_bytes_and_controls_in_lines() -> None:
    encoder = LogLineEncoder(system="s", identity="i", attempt_id="a")
    bodies = encoder.encode(3, [b"bad \xff\xfe bytes", b"\x1b[31m\ttab\x00", "grün \u2028".encode()])
    assert [json.loads(body)["output"] for body in bodies] == ["bad �� bytes", "\x1b[31m\ttab\x00", "grün \u2028"]
    assert bodies[1].endswith(b'"line_number":4,"output":"\\u001b[31m\\ttab\\u0000"}')
    assert last_lines([b"%d" % n for n in range(20)]) == tuple(str(n) for n in range(10, 20))
