"""A build job as the feeder sends it (wire document, "BuildJob (in)")."""

from __future__ import annotations

import enum

from attrs import frozen


class Subset(enum.StrEnum):
    """Which file of the repository the attributes are taken from."""

    NIXPKGS = "Nixpkgs"
    NIXOS = "NixOS"


@frozen
class Repo:
    """The repository of a job; ``clone_url`` is untrusted until checkout has looked at it."""

    owner: str
    name: str
    full_name: str
    clone_url: str


@frozen
class PullRequest:
    """The pull request of a job. ``target_branch`` None means the remote's default branch."""

    number: int
    head_sha: str
    target_branch: str | None = None


@frozen
class Address:
    """Where a message goes: an AMQP exchange and a routing key, both "" when the job said null."""

    exchange: str
    routing_key: str


DEFAULT_LOGS = Address("logs", "build.log")
DEFAULT_STATUSREPORT = Address("build-results", "")


@frozen
class BuildJob:
    """One job. ``logs`` and ``statusreport`` are resolved: defaults filled in, null halves turned into ""."""

    repo: Repo
    pr: PullRequest
    attrs: tuple[str, ...]
    request_id: str
    subset: Subset | None = None
    logs: Address = DEFAULT_LOGS
    statusreport: Address = DEFAULT_STATUSREPORT
