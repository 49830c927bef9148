"""The jobs of a round: what each changes in the repository, what it asks for, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field

from ofborg_async.lab.chaos.plan import JobKind, JobPlan
from ofborg_async.lab.upstream import Changes, Upstream

MASTER_FILES: dict[str, str | bytes | None] = {
    "default.nix": """
{ system ? builtins.currentSystem, supportedSystems ? [ ], ... }:
let
  token = builtins.readFile ./token;
  seconds = builtins.readFile ./seconds;
  lines = builtins.readFile ./lines;
  make = name: end: derivation {
    name = "${name}-${token}"; inherit system; builder = "/bin/sh";
    args = [ "-c" ''
      echo token ${token}
      i=0; while [ $i -lt ${lines} ]; do i=$((i+1)); echo line $i of ${token}; done
      sleep ${seconds}
      ${end}
    '' ];
  };
in {
  ok = make "ok" "echo end ${token}; echo x > $out";
  fails = make "fails" "echo about to fail ${token}; exit 3";
}
""",
    "token": "of-0-master",
    "seconds": "0",
    "lines": "0",
    "clash": "master\n",
}
BRANCHES = ("foo", "foo/bar")


@define(eq=False)
class Job:
    """A job and what is known of it while the round goes on.

    ``body`` is the message. ``statuses`` are those its result may have. ``silent``: it must have none, and end so
    in a journal. ``gone``: its pull request changed, so that it may end so too. ``optional``: its message may have died
    with a deleted queue, and then nothing tells of it. ``log_incomplete``: what goes to LOG had nowhere to go
    for a while.
    """

    plan: JobPlan
    head: str = ""
    body: Mapping[str, Any] | bytes = b""
    statuses: frozenset[str] = frozenset()
    silent: bool = False
    gone: bool = False
    optional: bool = False
    log_incomplete: bool = False
    builder_killed: bool = False
    submitted: bool = False
    attrs: tuple[str, ...] = field(default=())

    @property
    def request_id(self) -> str:
        """Unique in the round."""
        return f"request-{self.plan.number}"

    @property
    def token(self) -> str:
        """What its lines, and those of no other job, contain."""
        return token_of(self.plan.number)

    @property
    def pr(self) -> int:
        """The number of its pull request."""
        return self.plan.number


def token_of(number: int) -> str:
    """The token of a job's number; no other one's token begins so."""
    return f"of-{number}-x"


def _changes(job: Job) -> Changes:
    plan = job.plan
    changes: dict[str, str | bytes | None] = {
        "token": job.token,
        "seconds": f"{plan.seconds:g}",
        "lines": str(1500 if plan.kind is JobKind.LOUD else plan.lines),
    }
    if plan.kind is JobKind.CONFLICT:
        changes["clash"] = f"{job.token}\n"
    return changes


async def prepare(upstream: Upstream, plan: JobPlan, first_commit: str) -> Job:
    """Open the pull request of a job. ``first_commit`` is where master was before ``clash`` changed there."""
    job = Job(plan)
    job.head = await upstream.open_pr(plan.number, _changes(job), base=first_commit)
    match plan.kind:
        case JobKind.FAILS:
            job.attrs, job.statuses = ("fails",), frozenset({"Failure"})
        case JobKind.SKIPPED:
            job.attrs, job.statuses = (f"missing-{job.token}",), frozenset({"Skipped"})
        case JobKind.MIXED:
            job.attrs, job.statuses = ("ok", f"missing-{job.token}"), frozenset({"Success"})
        case JobKind.CONFLICT:
            job.attrs, job.statuses = ("ok",), frozenset({"Failure"})
        case JobKind.DELETED:
            job.attrs, job.silent = ("ok",), True
            await upstream.delete_pr(plan.number)
        case JobKind.FORCED:
            job.attrs, job.silent = ("ok",), True
            await upstream.force_push(plan.number, {"token": f"{job.token}-forced"})
        case JobKind.NO_ATTRS | JobKind.NONSENSE:
            job.silent = True
        case _:
            job.attrs, job.statuses = ("ok",), frozenset({"Success"})
    return job


def message(upstream: Upstream, job: Job, branch: str) -> Mapping[str, Any] | bytes:
    """The message of a job. ``branch`` is the target of those about a branch that changes its name."""
    if job.plan.kind is JobKind.NONSENSE:
        return b'{"request_id": "%s", "attrs": 1}' % job.request_id.encode()
    body = upstream.job(job.pr, job.head, job.attrs, request_id=job.request_id)
    if job.plan.kind is JobKind.BRANCH:
        body["pr"]["target_branch"] = branch
    return body
