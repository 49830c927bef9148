"""``submit``: the job as the feeder sends it, and what is heard of it; against a real broker."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiormq
import anyio
import pytest
from aiormq.abc import AbstractChannel
from cli_running import environment, ofborg

from ofborg_async.cli.parser import build_parser
from ofborg_async.cli.submit import Conversation, make_job, parse_amqp_url
from ofborg_async.errors import ConfigError
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.model.result import BuildResult, BuildStatus, LogStart, UnexpectedError
from ofborg_async.wire.decode import decode_job
from ofborg_async.wire.encode import LogLineEncoder, encode_log_start, encode_result

LINUX = "x86_64-linux"
DARWIN = "aarch64-darwin"
OPTIONS = ("--repo", "NixOS/nixpkgs", "--pr", "7", "--head-sha", "a" * 40, "--system", LINUX)


def parsed(*options: str) -> Namespace:
    return build_parser().parse_args(["submit", "--amqp-url", "amqp://u:p@h", *OPTIONS, *options])


def test_the_job_is_the_feeders() -> None:
    job = make_job(parsed("hello", "--request-id", "r", "--target-branch", "staging", "--subset", "NixOS"))
    assert job.repo.clone_url == "https://github.com/NixOS/nixpkgs.git"
    assert (job.logs.exchange, job.logs.routing_key) == ("logs", "nixos/nixpkgs.7")
    assert (job.statusreport.exchange, job.statusreport.routing_key) == ("build-results", "")
    assert (job.pr.number, job.pr.target_branch, job.request_id, job.attrs) == (7, "staging", "r", ("hello",))
    assert make_job(parsed("a")).request_id != make_job(parsed("a")).request_id
    options = parsed("a")
    options.repo = "nixpkgs"
    with pytest.raises(ConfigError, match="--repo: write OWNER/NAME"):
        make_job(options)


def test_urls() -> None:
    broker = parse_amqp_url("amqps://us%40er:p%2Fw@[::1]:99/v%2Fh")
    assert broker.addresses == (("::1", 99),)
    assert (broker.username, broker.password.reveal(), broker.vhost, broker.ssl) == ("us@er", "p/w", "v/h", True)
    assert parse_amqp_url("amqp://u:p@h").vhost == "/"
    assert parse_amqp_url("amqp://u:p@h").addresses == (("h", 5672),)
    for bad in ("http://u:secret@h", "amqp://h", "amqp://u:secret@h:x", "amqp://u:secret@h/v?ca_certs=x", "secret"):
        with pytest.raises(ConfigError) as caught:
            parse_amqp_url(bad)
        assert "secret" not in str(caught.value)


def result(request_id: str, system: str = LINUX, **changes: Any) -> bytes:
    job = make_job(parsed("hello"))
    fields: dict[str, Any] = {
        "repo": job.repo,
        "pr": job.pr,
        "system": system,
        "output": ("one", "two"),
        "attempt_id": "at",
        "request_id": request_id,
        "status": BuildStatus.SUCCESS,
        "skipped_attrs": (),
        "attempted_attrs": ("hello",),
    }
    return encode_result(BuildResult(**(fields | changes)))


def test_a_conversation_prints_what_is_ours() -> None:
    job = make_job(parsed("hello", "bad"))
    heard = Conversation(job, (LINUX,))
    lines = LogLineEncoder(system=LINUX, identity="mac\x1b", attempt_id="at")
    foreign = LogLineEncoder(system=LINUX, identity="x", attempt_id="other")
    start = LogStart(LINUX, "mac\x1b", "at", ("hello",), ("bad",))
    assert heard.hear(encode_log_start(LogStart(LINUX, "x", "other", ("hello",), ()))) == []
    assert heard.hear(encode_log_start(LogStart(DARWIN, "x", "other", ("hello",), ("bad",)))) == []
    assert heard.hear(encode_log_start(start)) == [r"mac\x1b builds it, skipped: bad"]
    assert heard.hear(lines.encode(1, [b"a\x1b[31mred\x1b[2J"])[0]) == [r"ared\x1b[2J"]
    assert heard.hear(foreign.encode(1, [b"x"])[0]) == []
    for noise in (b"", b"[]", b"{}", b"\xff", b'{"system": []}', b"[" * 100_000, result("another request")):
        assert heard.hear(noise) == []
    assert heard.missing == {LINUX}
    assert heard.hear(result(job.request_id)) == ["result: Success"]
    assert heard.hear(result(job.request_id)) == []
    assert not heard.missing
    assert heard.well


def test_a_result_without_a_log_shows_its_output() -> None:
    job = make_job(parsed("hello"))
    heard = Conversation(job, (LINUX, DARWIN))
    failed = result(job.request_id, status=BuildStatus.FAILURE, output=("Merge failed",), attempted_attrs=None)
    assert heard.hear(failed) == ["[x86_64-linux] result: Failure", "[x86_64-linux]   Merge failed"]
    unexpected = result(job.request_id, DARWIN, status=UnexpectedError("no\x07"), output=())
    assert heard.hear(unexpected) == [r"[aarch64-darwin] result: UnexpectedError: no\x07"]
    assert not heard.well


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of a builder's, its queue declared."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        await channel.queue_declare(f"build-inputs-{LINUX}", durable=True)
        yield channel
    finally:
        await connection.close()


async def build(channel: AbstractChannel, queue: str, status: BuildStatus) -> None:
    """Be the builder for one job: take it, log, report on RES and on LOG."""
    job = None
    while job is None:
        message = await channel.basic_get(queue, no_ack=True)
        if message.body:
            assert message.header.properties.content_type == "application/json"
            assert message.header.properties.delivery_mode == 2
            job = decode_job(message.body, max_bytes=100_000)
        else:
            await anyio.sleep(0.02)
    lines = LogLineEncoder(system=LINUX, identity="mac", attempt_id="at")
    start = encode_log_start(LogStart(LINUX, "mac", "at", job.attrs, ()))
    finish = result(job.request_id, status=status)
    for body in (start, *lines.encode(1, [b"line %d" % number for number in range(1, 301)])):
        await channel.basic_publish(body, exchange=job.logs.exchange, routing_key=job.logs.routing_key)
    for to in (job.statusreport, job.logs):
        await channel.basic_publish(finish, exchange=to.exchange, routing_key=to.routing_key)


@pytest.mark.parametrize(("status", "code"), [(BuildStatus.SUCCESS, 0), (BuildStatus.FAILURE, 1)])
async def test_submit_and_follow(broker: Broker, vhost: str, status: BuildStatus, code: int) -> None:
    url = broker.url(vhost=vhost)
    async with connected(url) as channel, anyio.create_task_group() as group:
        group.start_soon(build, channel, f"build-inputs-{LINUX}", status)
        with anyio.fail_after(90):
            done = await anyio.run_process(
                [
                    *(sys.executable, "-m", "ofborg_async", "submit", "--amqp-url", url, *OPTIONS),
                    *("--follow", "--timeout", "60s", "hello"),
                ],
                env=environment(),
                check=False,
            )
    assert done.returncode == code, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith(f"submitted for {LINUX}: request ")
    assert lines[1] == "mac builds it"
    assert lines[2:-1] == [f"line {number}" for number in range(1, 301)]
    assert lines[-1] == f"result: {status}"


async def test_refusals_are_explained(broker: Broker, vhost: str) -> None:
    done = ofborg("submit", "--amqp-url", broker.url(vhost=vhost), *OPTIONS, "hello")
    assert done.returncode == 1
    assert "no builder of x86_64-linux has ever used this vhost" in done.stderr
    done = ofborg("submit", "--amqp-url", broker.url(password="wr0ng"), *OPTIONS, "hello")
    assert done.returncode == 1
    assert "refused user 'lab'" in done.stderr
    assert "wr0ng" not in done.stderr


async def test_a_result_that_never_comes_ends_at_the_timeout(broker: Broker, vhost: str) -> None:
    url = broker.url(vhost=vhost)
    async with connected(url):
        done = ofborg("submit", "--amqp-url", url, *OPTIONS, "--follow", "--timeout", "1s", "hello")
    assert done.returncode == 1
    assert "took longer than 1 s" in done.stderr
    assert done.stdout.count("submitted") == 1
