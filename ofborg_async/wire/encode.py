"""Outgoing messages as compact JSON, fields in the wire document's order, and jobs for ``submit``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring
from typing import Any

from ofborg_async.model.job import BuildJob, PullRequest, Repo
from ofborg_async.model.result import BuildResult, LogStart, Status, UnexpectedError

OUTPUT_LINES = 10
"""Lines of a log that a BuildResult carries."""

MAX_OUTPUT_CHARACTERS = 60_000
"""All lines of ``output`` together: the poster refuses a text of more than 65,535 characters, and adds its own."""


def encode_log_start(message: LogStart) -> bytes:
    """LogStart as bytes."""
    return _compact(
        {
            "system": message.system,
            "identity": message.identity,
            "attempt_id": message.attempt_id,
            "attempted_attrs": message.attempted_attrs,
            "skipped_attrs": message.skipped_attrs,
        }
    )


class LogLineEncoder:
    """Encodes LogMsg in bulk: what is the same for each line of an attempt is rendered once."""

    def __init__(self, *, system: str, identity: str, attempt_id: str) -> None:
        head = {"system": system, "identity": identity, "attempt_id": attempt_id}
        self._prefix = _compact(head)[:-1].decode() + ',"line_number":'

    def encode(self, first_number: int, lines: Iterable[bytes]) -> list[bytes]:
        """LogMsg for ``lines``, numbered from ``first_number`` (the first of an attempt is 1).

        Undecodable bytes become U+FFFD (wire document, "What is sent").
        """
        prefix = self._prefix
        quote = encode_basestring
        return [
            f'{prefix}{number},"output":{quote(line.decode("utf-8", "replace"))}}}'.encode()
            for number, line in enumerate(lines, first_number)
        ]


def encode_result(message: BuildResult) -> bytes:
    """BuildResult as bytes. ``output`` is cut so that the result poster takes it."""
    return _compact(
        {
            "tag": "V1",
            "repo": _repo(message.repo),
            "pr": _pull_request(message.pr),
            "system": message.system,
            "output": _capped(message.output),
            "attempt_id": message.attempt_id,
            "request_id": message.request_id,
            "status": _status(message.status),
            "skipped_attrs": message.skipped_attrs,
            "attempted_attrs": message.attempted_attrs,
        }
    )


def encode_job(job: BuildJob) -> bytes:
    """A build job as the feeder sends it, for ``submit``."""
    return _compact(
        {
            "repo": _repo(job.repo),
            "pr": _pull_request(job.pr),
            "subset": job.subset.value if job.subset else None,
            "attrs": job.attrs,
            "request_id": job.request_id,
            "logs": [job.logs.exchange or None, job.logs.routing_key or None],
            "statusreport": [job.statusreport.exchange or None, job.statusreport.routing_key or None],
        }
    )


def last_lines(lines: Sequence[bytes]) -> tuple[str, ...]:
    """The tail of a log as ``output`` carries it: its last ten lines, undecodable bytes as U+FFFD."""
    return tuple(line.decode("utf-8", "replace") for line in lines[-OUTPUT_LINES:])


def _capped(output: Sequence[str]) -> list[str]:
    # The end of a log says why it ended, so the budget is spent from the last line backwards.
    left = MAX_OUTPUT_CHARACTERS
    kept: list[str] = []
    for line in reversed(output[-OUTPUT_LINES:]):
        share = max(0, min(len(line), left - 1))
        kept.append(line if share == len(line) else line[: max(0, share - 1)] + "…")
        left -= share + 1
    return kept[::-1]


def _repo(repo: Repo) -> dict[str, str]:
    return {"owner": repo.owner, "name": repo.name, "full_name": repo.full_name, "clone_url": repo.clone_url}


def _pull_request(pull: PullRequest) -> dict[str, Any]:
    return {"target_branch": pull.target_branch, "number": pull.number, "head_sha": pull.head_sha}


def _status(status: Status) -> Any:
    return {"UnexpectedError": {"err": status.err}} if isinstance(status, UnexpectedError) else status.value


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
