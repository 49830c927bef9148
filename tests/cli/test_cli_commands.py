"""Commands as processes of their own: output, exit statuses, what they import."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_running import DEADLINE_SECONDS, environment, fake_daemon, ofborg

from ofborg_async.cli import main

CONFIG = """
[daemon]
state_dir = "{folder}/state"
control_socket = "{folder}/control.sock"

[[identity]]
name = "test-a"
checkout.root = "{folder}/root"
nix.systems = ["x86_64-linux"]
rabbitmq = {{ host = "127.0.0.1:1", ssl = false, virtualhost = "v", username = "u", password_file = "{password}" }}
feedback.full_logs = true
"""

COMMANDS = (
    *("run", "check", "convert", "demo", "status", "why", "locks", "history", "logs"),
    *("pause", "resume", "drain", "cancel", "restart", "reload", "stop", "submit"),
)


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fake_daemon(tmp_path_factory.mktemp("well"), "well") as path:
        yield path


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fake_daemon(tmp_path_factory.mktemp("ill"), "all") as path:
        yield path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    path = tmp_path / "ofborg.toml"
    path.write_text(CONFIG.format(folder=tmp_path, password=password))
    return path


def test_status_says_how_it_is_with_its_exit_status(well: Path, ill: Path, tmp_path: Path) -> None:
    done = ofborg("status", "--socket", well)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  OK\n" in done.stdout
    assert "LAST-ERROR" in done.stdout, "160 columns wide when nobody looks"
    assert ofborg("status", "--socket", ill).returncode == 2
    assert ofborg("status", "mac1-two-systems", "--socket", ill).returncode == 0
    assert ofborg("status", "mac1-refused", "--socket", ill).returncode == 2
    done = ofborg("status", "--socket", tmp_path / "nobody.sock")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no daemon answers at" in done.stderr
    assert "start the daemon" in done.stderr


def test_status_json_is_the_snapshot(well: Path, tmp_path: Path) -> None:
    document = json.loads(ofborg("status", "--json", "--socket", well).stdout)
    assert document["schema"] == 1
    assert [row["name"] for row in document["identities"]] == ["mac1-a", "mac1-b"]
    one = json.loads(ofborg("status", "--json", "mac1-b", "--socket", well).stdout)
    assert [row["name"] for row in one["identities"]] == ["mac1-b"]
    done = ofborg("status", "--json", "--socket", tmp_path / "nobody.sock")
    assert (done.returncode, done.stdout) == (3, "")


def test_the_socket_comes_from_the_environment_too(well: Path) -> None:
    done = ofborg("status", env=environment(OFBORG_ASYNC_CONTROL_SOCKET=str(well)))
    assert done.returncode == 0, done.stderr


def test_the_socket_comes_from_a_configuration(well: Path, tmp_path: Path) -> None:
    file = tmp_path / "builders.toml"
    # The password is of no interest: whoever asks need not be allowed to read it, nor need all be in order.
    file.write_text(
        f'[daemon]\ncontrol_socket = "{well}"\nno_such_key = 1\n[defaults]\nrabbitmq.password_file = "/no"\n'
    )
    assert ofborg("status", "-c", file).returncode == 0
    assert ofborg("status", "-c", file, env=environment(OFBORG_ASYNC_CONTROL_SOCKET="/no")).returncode == 3
    file.write_text("")  # it says none, so the usual places are looked at
    assert ofborg("status", "-c", file, env=environment(OFBORG_ASYNC_CONTROL_SOCKET=str(well))).returncode == 0
    for text, why in (("[daemon]\ncontrol_socket = 1\n", "control_socket"), ("[daemon", "is no valid TOML")):
        file.write_text(text)
        done = ofborg("status", "-c", file)
        assert (done.returncode, why in done.stderr, done.stdout) == (78, True, "")
    assert ofborg("status", "-c", tmp_path / "none.toml").returncode == 78
    assert ofborg("status", "-c", file, "--socket", well).returncode == 64


def test_lists_and_reasons(well: Path) -> None:
    assert json.loads(ofborg("locks", "--json", "--socket", well).stdout)["locks"][0]["kind"] == "root"
    assert "in this order" in ofborg("locks", "--socket", well).stdout
    history = json.loads(ofborg("history", "mac1-b", "--json", "--since", "2d", "--socket", well).stdout)
    assert [row["status"] for row in history["entries"]] == ["UnexpectedError"]
    assert "cancelled by the operator" in ofborg("history", "--socket", well).stdout
    assert ofborg("why", "mac1-a", "--socket", well).stdout == "mac1-a waits for a slot: 4 of 4 are in use\n"
    assert json.loads(ofborg("why", "mac1-a", "--json", "--socket", well).stdout)["identity"] == "mac1-a"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("pause", "mac1-a", "--reason", "disk", "--for", "2h"), "mac1-a: paused for 2h00m\n"),
        (("pause",), "all identities: paused until resumed\n"),
        (("resume", "mac1-a", "mac1-b"), "mac1-a, mac1-b: resumed\n"),
        (("drain", "--deadline", "30m"), "all identities: draining: no new job is taken\n"),
        (("drain", "mac1-a", "--wait"), "mac1-a: drained\n"),
        (("cancel", "5f0c1c1e"), "attempt 5f0c1c1e is being ended and will be reported\n"),
        (("restart", "mac1-b"), "mac1-b: restarting\n"),
    ],
)
def test_orders_say_what_they_did(well: Path, command: tuple[str, ...], said: str) -> None:
    done = ofborg(*command, "--socket", well)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_breaking_a_lock_says_what_became_of_it(well: Path) -> None:
    done = ofborg("locks", "--break", "tree:38dca4e3aa6bca43ea96d2fcc04e8229", "--socket", well)
    assert (done.returncode, done.stderr) == (0, "")
    assert "builder/mac1-a.lock is free: its dead holder had left behind and kept it: process 4711 (git)" in (
        " ".join(done.stdout.split())
    )
    done = ofborg("locks", "--break", "root:mac1-a", "--socket", well)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "ofborg-async: daemon holds it and is alive (stop it)\n"


def test_reload_says_for_each_identity_what_it_changed(well: Path) -> None:
    done = ofborg("reload", "--socket", well)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "mac1-a: changed (rabbitmq.password): it restarts once its job is over",
        "mac1-b: unchanged",
        "in effect now: daemon.max_builds",
        "in effect only after a restart of the daemon: daemon.state_dir",
        "warning: mac1-b: others can read its root",
    ]
    document = json.loads(ofborg("reload", "--json", "--socket", well).stdout)
    assert [(row["name"], row["change"], row["keys"]) for row in document["identities"]] == [
        ("mac1-a", "changed", ["rabbitmq.password"]),
        ("mac1-b", "unchanged", []),
    ]


def test_stop_stops(tmp_path: Path) -> None:
    with fake_daemon(tmp_path, "well") as path:
        done = ofborg("stop", "--socket", path)
        assert (done.returncode, done.stdout) == (0, "the daemon is stopping\n")


def test_a_wrong_name_is_explained(well: Path) -> None:
    for command in (("why", "mac-a"), ("pause", "mac-a"), ("restart", "mac-a"), ("status", "mac-a")):
        done = ofborg(*command, "--socket", well)
        assert (done.returncode, done.stdout) == (64, "")
        assert "'mac-a'" in done.stderr
        assert "did you mean mac1-a?" in done.stderr
    done = ofborg("cancel", "ffff", "--socket", well)
    assert (done.returncode, done.stderr) == (1, "ofborg-async: it has ended already\n")


def test_wrong_usage_is_no_state_of_a_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ((), ("stats",), ("pause", "--for", "2"), ("history", "--since", "x"), ("status", "--host", "-x")):
        with pytest.raises(SystemExit, match="64"):
            main(command)
        assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: ofborg-async {command} ")


def test_a_piped_log_is_the_bytes_as_they_are(well: Path) -> None:
    log = subprocess.run(
        [sys.executable, "-m", "ofborg_async", "logs", "mac1-a", "-f", "--socket", well],
        env=environment(),
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    ).stdout
    assert log == (
        b"building hello\n\x1b[31;1mred\x1b[0m \x1b]0;owned\x07 and \xff bytes\nsecond line\nthe last line\n"
    )


def in_terminal(*arguments: str | Path, columns: int, until: bytes, then: signal.Signals | None) -> tuple[bytes, int]:
    """Run in a terminal; once ``until`` was shown, send the signal; everything shown, and the exit status."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        os.execve(
            sys.executable,
            [sys.executable, "-m", "ofborg_async", *map(str, arguments)],
            environment(TERM="xterm", COLUMNS=str(columns), LINES="50"),
        )
    shown = b""
    sent = False
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the child has closed its end
            break
        if not data:
            break
        shown += data
        if until in shown and not sent and then is not None:
            sent = True
            os.kill(pid, then)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return shown, os.waitstatus_to_exitcode(status)


def test_a_log_on_a_terminal_is_safe(well: Path) -> None:
    shown, status = in_terminal("logs", "mac1-a", "--socket", well, columns=80, until=b"second line", then=None)
    assert status == 0
    assert b"red \\x1b]0;owned\\x07 and \xef\xbf\xbd bytes\r\n" in shown
    assert b"\x1b" not in shown


def test_watch_draws_until_interrupted_and_leaves_the_last_picture(ill: Path) -> None:
    shown, status = in_terminal(
        "status", "--watch", "--socket", ill, columns=80, until=b"mac1-quarantined", then=signal.SIGINT
    )
    assert status == 2, shown
    assert b"\x1b[?1049h" in shown, "on the alternate screen"
    before, left, after = shown.partition(b"\x1b[?1049l")
    assert left
    assert b"mac1-quarantined" in before
    assert b"mac1-quarantined" in after
    assert b"Traceback" not in shown


def test_a_watch_outlives_a_daemon(tmp_path: Path) -> None:
    shown, status = in_terminal(
        "status", "--watch", "--socket", tmp_path / "none", columns=80, until=b"no daemon answers", then=signal.SIGINT
    )
    assert status == 3
    assert b"Traceback" not in shown


def test_colours_are_for_terminals_that_want_them(well: Path) -> None:
    shown, _ = in_terminal("status", "--socket", well, columns=80, until=b"", then=None)
    assert b"\x1b[32mOK" in shown
    assert "\x1b" not in ofborg("status", "--socket", well).stdout


def test_a_reader_who_has_seen_enough_is_no_error(well: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "ofborg_async", "status", "--socket", well],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=DEADLINE_SECONDS) == 141


# --- commands without a daemon ------------------------------------------------------------------------------------


def test_check_and_run_exit_with_78_for_a_bad_configuration(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[daemon]\nstat_dir = 1\n")
    for command in ("check", "run"):
        done = ofborg(command, "-c", bad)
        assert done.returncode == 78, done
        assert done.stdout == ""
        assert "stat_dir" in done.stderr
        assert "state_dir" in done.stderr
        assert "Traceback" not in done.stderr
    done = ofborg("run", "-c", tmp_path / "missing.toml")
    assert done.returncode == 78
    assert "missing.toml" in done.stderr


def test_check_is_0_for_a_good_one(config: Path) -> None:
    done = ofborg("check", "-c", config)
    assert done.returncode == 0, done.stderr
    assert "test-a" in done.stdout
    assert "secret" not in done.stdout
    assert json.loads(ofborg("check", "--json", "-c", config).stdout)["ok"] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_run_refuses_root(config: Path) -> None:
    done = ofborg("run", "-c", config)
    assert done.returncode == 78
    assert "allow_root" in done.stderr


def test_convert_writes_toml(tmp_path: Path) -> None:
    original = tmp_path / "original.json"
    original.write_text(
        json.dumps(
            {
                "runner": {"identity": "old"},
                "feedback": {"full_logs": True},
                "checkout": {"root": str(tmp_path / "root")},
                "nix": {"system": "x86_64-linux", "remote": "daemon", "build_timeout_seconds": 3600},
                "rabbitmq": {"ssl": True, "host": "h", "username": "u", "password": "very-secret"},
            }
        )
    )
    done = ofborg("convert", original)
    assert done.returncode == 0, done.stderr
    assert 'name = "old"' in done.stdout
    assert "very-secret" not in done.stdout
    assert ofborg("convert", tmp_path / "missing.json").returncode == 78


def test_the_daemon_imports_neither_rendering_nor_ssh(config: Path) -> None:
    program = (
        "import sys\n"
        "import ofborg_async.supervisor.daemon as daemon\n"
        "import ofborg_async.control.page, ofborg_async.control.openapi\n"
        "daemon.run_daemon = lambda settings, read_again: print(sorted(sys.modules)) or 0\n"
        "from ofborg_async.cli import main\n"
        "sys.exit(main(['run', '-c', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, config],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = {name.partition(".")[0] for name in eval(done.stdout)}
    assert "ofborg_async" in modules
    assert not modules & {"rich", "asyncssh", "cryptography"}
