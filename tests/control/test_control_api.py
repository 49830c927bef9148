"""The server and the client over a real Unix socket: every route, typed answers, translated refusals."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from control_serving import PATIENCE_SECONDS, raw, serving
from fake_daemon import ATTEMPT, FAULTY, HISTORY, LOCKS, LOG, RELOADED, SNAPSHOT, FakeDaemon

from ofborg_async.control.client import ControlClient, unix_connector
from ofborg_async.control.problems import AnsweredError, ConflictError, NoDaemonError
from ofborg_async.control.values import SCHEMA
from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.model.reload import ReloadReport


async def test_snapshots_come_back_as_they_were(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()) as client:
        assert await client.status() == SNAPSHOT
        assert await client.locks() == LOCKS
        assert await client.history() == HISTORY


async def test_status_json_has_the_names_of_the_interface(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()):
        received = await raw(tmp_path / "c.sock", b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    document = json.loads(body)
    assert document["schema"] == SCHEMA
    row = document["identities"][0]
    assert {"name", "state", "systems", "root", "ok_24h", "failed_24h", "restarts", "last_error"} <= set(row)
    assert {"system", "queue", "amqp", "job"} <= set(row["systems"][0])
    wanted = {"attempt_id", "request_id", "repo", "pr", "attrs", "phase", "started_at", "lines"}
    assert wanted <= set(row["systems"][0]["job"])
    assert document["identities"][1]["systems"][0]["job"] is None
    assert b"\x1b" not in body


async def test_history_passes_its_query_on(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    async with serving(tmp_path / "c.sock", daemon) as client:
        since = datetime(2025, 6, 1, tzinfo=UTC)
        assert await client.history(identity="mac1-b", since=since, limit=5, before="x") == HISTORY[1:]
    assert daemon.calls == [("history", "mac1-b", since, 5, "x")]


async def test_orders_reach_the_daemon(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    async with serving(tmp_path / "c.sock", daemon) as client:
        await client.drain(["mac1-a"], deadline_seconds=90.0)
        await client.pause([], reason="new disk", for_seconds=60.0)
        await client.resume(["mac1-a", "mac1-b"])
        await client.cancel(ATTEMPT[:8])
        await client.restart("mac1-a")
        await client.stop()
    pause = daemon.calls.pop(1)
    assert daemon.calls == [
        ("drain", ("mac1-a",), 90.0),
        ("resume", ("mac1-a", "mac1-b")),
        ("cancel", ATTEMPT[:8]),
        ("restart", "mac1-a"),
        ("stop",),
    ]
    assert pause[:3] == ("pause", (), "new disk")
    assert isinstance(pause[3], datetime)
    assert 0 < (pause[3] - datetime.now(UTC)).total_seconds() <= 60


async def test_a_lock_is_broken_unless_its_holder_is_alive(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()) as client:
        root, tree = LOCKS
        assert (await client.break_lock(tree.key)).ended == ("process 4711 (git)",)
        with pytest.raises(AnsweredError, match="is alive") as caught:
            await client.break_lock(root.key)
        assert caught.value.status == 409
        with pytest.raises(AnsweredError, match="no lock is called") as caught:
            await client.break_lock("x")
        assert caught.value.status == 404


@pytest.mark.parametrize("report", [RELOADED, FAULTY])
async def test_a_reload_is_told_whether_it_changed_anything_or_not(tmp_path: Path, report: ReloadReport) -> None:
    daemon = FakeDaemon(reloaded=report)
    async with serving(tmp_path / "c.sock", daemon) as client:
        assert await client.reload() == report
    assert daemon.calls == [("reload",)]


async def test_an_unknown_identity_names_the_nearest(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()) as client:
        with pytest.raises(AnsweredError, match=r"'mac1-aa'.*did you mean mac1-a\?") as caught:
            await client.why("mac1-aa")
        assert caught.value.status == 404
        with pytest.raises(AnsweredError, match="known are: mac1-a, ") as caught:
            await client.restart("nothing like it")
        assert caught.value.status == 404
        with pytest.raises(AnsweredError, match=r"could be 2 attempts \(give more"):
            async with client.log("5f0c", follow=False):
                pass


async def test_why_is_a_sentence(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()) as client:
        assert await client.why("mac1-a") == "mac1-a waits for a slot: 4 of 4 are in use"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ConflictError("not now", remedy="later"), 409, "not now"),
        (HostFault(FaultKind.DISK, "no space", remedy="free some"), 503, "no space"),
        (RuntimeError("secret detail"), 500, "made a mistake"),
    ],
)
async def test_errors_of_the_daemon_become_problems(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, status: int, text: str
) -> None:
    with caplog.at_level(logging.CRITICAL):
        async with serving(tmp_path / "c.sock", FakeDaemon(error=error)) as client:
            with pytest.raises(AnsweredError, match=text) as caught:
                await client.status()
    assert caught.value.status == status
    assert "secret" not in str(caught.value)


async def test_a_log_is_followed_until_the_attempt_ends(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    async with serving(tmp_path / "c.sock", daemon) as client, client.log(ATTEMPT, follow=True) as chunks:
        received = b""
        async for chunk in chunks:
            received += chunk
            daemon.log_ended.set()
    assert received == LOG + daemon.tail_bytes


async def test_a_log_that_is_not_followed_ends_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "c.sock", FakeDaemon()) as client, client.log("mac1-a", follow=False) as chunks:
        assert b"".join([chunk async for chunk in chunks]) == LOG


async def test_a_follower_who_leaves_is_noticed_while_nothing_is_printed(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    async with serving(tmp_path / "c.sock", daemon) as client:
        async with client.log(ATTEMPT, follow=True) as chunks:
            await anext(chunks)
            assert not daemon.log_closed.is_set()
        with anyio.fail_after(PATIENCE_SECONDS):
            await daemon.log_closed.wait()


async def test_a_log_that_is_cut_short_is_no_complete_log(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    with pytest.raises(NoDaemonError):  # noqa: PT012 - the server ends inside
        async with anyio.create_task_group() as group:
            scope_ended = anyio.Event()

            async def serve() -> None:
                async with serving(tmp_path / "c.sock", daemon):
                    scope_ended.set()
                    await daemon.stopped.wait()

            group.start_soon(serve)
            await scope_ended.wait()
            client = ControlClient(unix_connector(tmp_path / "c.sock"), where="here")
            try:
                async with client.log(ATTEMPT, follow=True) as chunks:
                    async for _ in chunks:
                        daemon.stopped.set()
            except NoDaemonError as error:
                found = error
        raise found


async def test_a_drain_is_waited_for(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    async with serving(tmp_path / "c.sock", daemon) as client, anyio.create_task_group() as group:
        await client.drain([])
        done = anyio.Event()

        async def wait() -> None:
            await client.wait_drained([])
            done.set()

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not done.is_set()
        daemon.drained.set()
        with anyio.fail_after(PATIENCE_SECONDS):
            await done.wait()


async def test_a_drain_longer_than_one_request_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ofborg_async.control.routes.LONG_POLL_SECONDS", 0.01)
    daemon = FakeDaemon()
    asked = 0
    original = FakeDaemon.wait_drained

    async def counting(self: FakeDaemon, identities: tuple[str, ...]) -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            self.drained.set()
        await original(self, identities)

    monkeypatch.setattr(FakeDaemon, "wait_drained", counting)
    async with serving(tmp_path / "c.sock", daemon) as client:
        await client.wait_drained(["mac1-a"])
    assert asked == 3


async def test_a_stopping_daemon_still_answers_who_told_it(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    path = tmp_path / "c.sock"
    async with anyio.create_task_group() as group:

        async def serve(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with serving(path, daemon):
                task_status.started()
                await daemon.stopped.wait()

        await group.start(serve)
        await ControlClient(unix_connector(path), where=str(path)).stop()
    assert not path.exists()


async def test_no_daemon_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "nothing.sock"
    client = ControlClient(unix_connector(path), where=str(path))
    with pytest.raises(NoDaemonError, match=r"no daemon answers at .*nothing.sock.*start the daemon"):
        await client.status()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[1,2]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"schema":2}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"schema":1}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
    ],
)
async def test_what_is_no_answer_is_no_daemon(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "c.sock"

    async def speak(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer or b"\n")

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, speak)
        with pytest.raises(NoDaemonError):
            await ControlClient(unix_connector(path), where=str(path)).status()
        group.cancel_scope.cancel()


async def test_a_daemon_that_never_answers_ends_at_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"

    async def say_nothing(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, say_nothing)
        with pytest.raises(NoDaemonError, match=r"longer than 0\.05 s"):
            await ControlClient(unix_connector(path), where=str(path), call_seconds=0.05).status()
        group.cancel_scope.cancel()
