"""``submit``: publishes a build job as the feeder would; with --follow, prints its log and results as they come."""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from argparse import Namespace
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
from attrs import define, field

from ofborg_async import __version__
from ofborg_async.broker.feeder import Feeder, open_feeder
from ofborg_async.cli.status_codes import EX_FAILURE, EX_OK
from ofborg_async.cli.text import TerminalText
from ofborg_async.clock import SystemClock
from ofborg_async.control.problems import UnknownNameError
from ofborg_async.control.visible import visible
from ofborg_async.errors import ConfigError, ConfigFault
from ofborg_async.model.identity import BrokerSettings, Secret
from ofborg_async.model.job import DEFAULT_STATUSREPORT, Address, BuildJob, PullRequest, Repo, Subset
from ofborg_async.waiting import within
from ofborg_async.wire.encode import encode_job

_POLL_SECONDS = 0.1
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PORTS = {"amqp": 5672, "amqps": 5671}


def submit(arguments: Namespace) -> int:
    """Publish a job for each system. Raises ConfigError, and what ``Feeder`` and ``open_feeder`` raise."""
    return anyio.run(_submit, arguments)


async def _submit(arguments: Namespace) -> int:
    broker = _broker(arguments)
    job = make_job(arguments)
    systems = tuple(dict.fromkeys(arguments.system))
    async with open_feeder(broker, version=__version__) as feeder:
        if arguments.follow:
            await feeder.listen(job.logs, job.statusreport)
        for system in systems:
            await feeder.publish(system, encode_job(job))
            print(f"submitted for {visible(system)}: request {visible(job.request_id)}", flush=True)
        if not arguments.follow:
            return EX_OK
        wait = f"the result of request {job.request_id} (a builder may have dropped the job: see history)"
        with within(arguments.timeout, wait):
            return await _follow(feeder, Conversation(job, systems))


async def _follow(feeder: Feeder, conversation: Conversation) -> int:
    clock = SystemClock()
    while conversation.missing:
        body = await feeder.next_message()
        if body is None:
            sys.stdout.flush()
            await clock.sleep(_POLL_SECONDS)
        else:
            for line in conversation.hear(body):
                print(line)
    return EX_OK if conversation.well else EX_FAILURE


def make_job(arguments: Namespace) -> BuildJob:
    """The job that the options describe. Raises ConfigError."""
    owner, slash, name = arguments.repo.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise _fault("--repo", "write OWNER/NAME")
    if not _COMMIT.fullmatch(arguments.head_sha):
        raise _fault(
            "--head-sha", "write the whole commit, 40 hex digits (git rev-parse): builders drop others silently"
        )
    request_id = arguments.request_id or str(uuid.uuid4())
    return BuildJob(
        repo=Repo(owner, name, arguments.repo, arguments.clone_url or f"https://github.com/{arguments.repo}.git"),
        pr=PullRequest(arguments.pr, arguments.head_sha, arguments.target_branch),
        attrs=tuple(arguments.attrs),
        request_id=request_id,
        subset=Subset(arguments.subset) if arguments.subset else None,
        logs=Address("logs", f"{owner}/{name}.{arguments.pr}".lower()),
        statusreport=DEFAULT_STATUSREPORT,
    )


@define
class Conversation:
    """What is heard of one job: pure, bodies in and lines to print out.

    The addresses are shared with other jobs, so an attempt is taken for ours when its LogStart names one of our systems
    and exactly our attrs; a result when it carries our request_id. ``missing`` are the systems without a result.
    """

    job: BuildJob
    systems: tuple[str, ...]
    well: bool = True
    missing: set[str] = field(init=False)
    _ours: dict[str, TerminalText] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.missing = set(self.systems)

    def hear(self, body: bytes) -> list[str]:
        """The lines to print for a message; none for what is not ours or not understood."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return []
        if not isinstance(message, dict) or message.get("system") not in self.systems:
            return []
        if "status" in message:
            return self._result(message)
        if "output" in message:
            return self._line(message)
        return self._start(message)

    def _start(self, message: Mapping[str, Any]) -> list[str]:
        attrs = [*_texts(message.get("attempted_attrs")), *_texts(message.get("skipped_attrs"))]
        if sorted(attrs) != sorted(self.job.attrs):
            return []
        self._ours[str(message.get("attempt_id"))] = TerminalText()
        skipped = _texts(message.get("skipped_attrs"))
        note = f", skipped: {' '.join(skipped)}" if skipped else ""
        return [self._prefix(message) + visible(f"{message.get('identity')} builds it{note}")]

    def _line(self, message: Mapping[str, Any]) -> list[str]:
        text = self._ours.get(str(message.get("attempt_id")))
        if text is None:
            return []
        return [self._prefix(message) + text.feed(str(message["output"]).encode("utf-8", "replace"))]

    def _result(self, message: Mapping[str, Any]) -> list[str]:
        system = message["system"]
        if message.get("request_id") != self.job.request_id or system not in self.missing:
            return []
        self.missing.discard(system)
        status = message["status"]
        if isinstance(status, dict):
            problem = status.get("UnexpectedError")
            status = f"UnexpectedError: {problem.get('err') if isinstance(problem, dict) else problem}"
        self.well = self.well and status == "Success"
        lines = [f"{self._prefix(message)}result: {visible(str(status))}"]
        if str(message.get("attempt_id")) not in self._ours:
            lines += [f"{self._prefix(message)}  {visible(line)}" for line in _texts(message.get("output"))]
        return lines

    def _prefix(self, message: Mapping[str, Any]) -> str:
        return f"[{visible(str(message['system']))}] " if len(self.systems) > 1 else ""


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _broker(arguments: Namespace) -> BrokerSettings:
    if arguments.amqp_url is not None:
        return parse_amqp_url(arguments.amqp_url)
    from ofborg_async.config import load

    identities = load(arguments.config, environ=os.environ).identities
    if arguments.identity is None:
        return identities[0].broker
    for identity in identities:
        if identity.name == arguments.identity:
            return identity.broker
    unknown = UnknownNameError("identity", arguments.identity, [identity.name for identity in identities])
    raise _fault("--identity", f"{unknown}; {unknown.remedy}")


def parse_amqp_url(url: str) -> BrokerSettings:
    """``amqp[s]://user:password@host[:port][/vhost]``, its parts percent-encoded. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _fault("--amqp-url", "its port or its brackets are wrong") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise _fault("--amqp-url", "write amqp://user:password@host:5672/vhost, or amqps:// for TLS")
    if parts.username is None or parts.password is None:
        raise _fault("--amqp-url", "it has no user and password; write them as user:password@ before the host")
    if parts.query or parts.fragment:
        raise _fault("--amqp-url", "it has a query; for certificates of your own use -c with a configuration")
    return BrokerSettings(
        addresses=((parts.hostname, port or _PORTS[parts.scheme]),),
        vhost=unquote(parts.path[1:]) if len(parts.path) > 1 else "/",
        username=unquote(parts.username),
        password=Secret(unquote(parts.password)),
        ssl=parts.scheme == "amqps",
    )


def _fault(option: str, message: str) -> ConfigError:
    return ConfigError([ConfigFault("command line", option, message)])
