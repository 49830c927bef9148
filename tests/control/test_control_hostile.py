"""Hostile and broken requests: each gets a 4xx or a closed connection, and the server goes on."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from control_serving import PATIENCE_SECONDS, raw, serving
from fake_daemon import LOG, FakeDaemon
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ofborg_async.control.http import Limits

SMALL = Limits(read_seconds=0.2, write_seconds=0.5, stall_seconds=0.5, header_bytes=4096, body_bytes=1000)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0


REQUESTS = {
    "garbage": (b"\x00\xff\xfe\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40, 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "huge header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", 431),
    "huge target": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "huge body": (b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"a" * 5000, 413),
    "huge chunk": (
        b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"a" * 2000,
        413,
    ),
    "two lengths": (b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", 400),
    "negative length": (b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    "traversal": (b"GET /v1/logs/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "escaped traversal": (b"GET /v1/logs/%2e%2e%2fpasswd HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "dots": (b"GET /v1/logs/%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "NUL": (b"GET /v1/logs/a%00b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "not UTF-8": (b"GET /v1/logs/%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "absolute": (b"GET http://x/v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "unknown path": (b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "empty selector": (b"GET /v1/logs/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "unknown log": (b"GET /v1/logs/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "wrong method": (b"DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "get an order": (b"GET /v1/stop HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "unknown query": (b"GET /v1/history?lmit=3 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "query twice": (b"GET /v1/history?limit=3&limit=4 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "limit": (b"GET /v1/history?limit=1000000 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "limit text": (b"GET /v1/history?limit=many HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "naive time": (b"GET /v1/history?since=2025-01-01T00:00:00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "flag": (b"GET /v1/logs/mac1-a?follow=perhaps HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "query bytes": (b"GET /v1/history?identity=%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "control characters": (b"GET /v1/history?identity=%1b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
}

BODIES = {
    "no JSON": b"{",
    "no object": b"[]",
    "deep": b"[" * 900,
    "unknown field": b'{"identity": []}',
    "one name": b'{"identities": "mac1-a"}',
    "number as name": b'{"identities": [1]}',
    "boolean as seconds": b'{"for_seconds": true}',
    "NaN": b'{"for_seconds": NaN}',
    "negative": b'{"for_seconds": -1}',
    "too long": b'{"for_seconds": 1e300}',
    "escape in reason": b'{"reason": "\\u001b[2J"}',
    "not UTF-8": b'{"reason": "\xff"}',
    "surrogate": b'{"reason": "\\ud800"}',
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_bad_request_is_refused_and_the_server_goes_on(tmp_path: Path, name: str) -> None:
    request, status = REQUESTS[name]
    daemon = FakeDaemon()
    async with serving(tmp_path / "c.sock", daemon, SMALL) as client:
        answer = await raw(tmp_path / "c.sock", request)
        assert status_of(answer) == status, answer
        assert b'"remedy":' in answer
        assert await client.status() == daemon.shown
    assert daemon.calls == []


@pytest.mark.parametrize("name", BODIES)
async def test_a_bad_body_is_refused(tmp_path: Path, name: str) -> None:
    daemon = FakeDaemon()
    body = BODIES[name]
    head = b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(tmp_path / "c.sock", daemon, SMALL):
        answer = await raw(tmp_path / "c.sock", head + body)
    assert status_of(answer) == 400, answer
    assert daemon.calls == []


@given(
    request=st.binary(max_size=300)
    | st.from_regex(rb"[A-Z]{1,6} /[!-~]{0,40} HTTP/1\.1\r\nHost: x\r\n\r\n", fullmatch=True)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_bytes_bring_the_server_down(tmp_path: Path, request: bytes) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon(), SMALL) as client:
        answer = await raw(tmp_path / "c.sock", request, then_eof=True)
        assert answer == b"" or 200 <= status_of(answer) < 500, answer
        await client.status()


async def test_a_slow_request_ends_at_the_deadline(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon(), SMALL) as client:
        answer = await raw(tmp_path / "c.sock", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert status_of(answer) == 408
        answer = await raw(tmp_path / "c.sock", b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n1")
        assert status_of(answer) == 408
        await client.status()


async def test_a_reader_who_stands_still_is_cut_off(tmp_path: Path) -> None:
    daemon = FakeDaemon(log_bytes=b"x" * (8 * 1024 * 1024))
    async with serving(tmp_path / "c.sock", daemon, SMALL) as client:
        async with await anyio.connect_unix(tmp_path / "c.sock") as stream:
            await stream.send(b"GET /v1/logs/mac1-a HTTP/1.1\r\nHost: x\r\n\r\n")
            with anyio.fail_after(PATIENCE_SECONDS):
                await daemon.log_closed.wait()
        await client.status()


async def test_too_many_connections_are_told_so_and_the_rest_work(tmp_path: Path) -> None:
    limits = Limits(connections=2, read_seconds=PATIENCE_SECONDS)
    path = tmp_path / "c.sock"
    async with serving(path, FakeDaemon(), limits) as client:
        async with await anyio.connect_unix(path) as one, await anyio.connect_unix(path) as two:
            for stream in (one, two):
                await stream.send(b"GET ")
            await anyio.wait_all_tasks_blocked()
            answer = await raw(path, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status_of(answer) == 503
            assert b"too many connections" in answer
        await anyio.wait_all_tasks_blocked()
        await client.status()


async def test_head_and_expect_are_http(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()):
        answer = await raw(tmp_path / "c.sock", b"HEAD /v1/locks HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(answer) == 200
        assert answer.endswith(b"\r\n\r\n")
        request = b"POST /v1/resume HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        async with await anyio.connect_unix(tmp_path / "c.sock") as stream:
            await stream.send(request)
            assert (await stream.receive()).startswith(b"HTTP/1.1 100 ")
            await stream.send(b"{}")
            assert (await stream.receive()).startswith(b"HTTP/1.1 202 Accepted")


async def test_logs_speak_old_http_and_head_too(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()):
        answer = await raw(tmp_path / "c.sock", b"GET /v1/logs/mac1-a HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"\r\n\r\n" + LOG)
        answer = await raw(tmp_path / "c.sock", b"HEAD /v1/logs/mac1-a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(answer) == 200
        assert answer.endswith(b"\r\n\r\n")


async def test_a_peer_who_says_nothing_and_leaves_is_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()) as client:
        assert await raw(tmp_path / "c.sock", b"", then_eof=True) == b""
        await client.status()
