"""What a doctor makes of what it saw. Pure."""

from __future__ import annotations

import os
import pwd
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ofborg_async.broker.probe import Answer, ProbeReport, Right
from ofborg_async.cli.doctor import document_of
from ofborg_async.doctor import Finding, Group, Report, Verdict, brokers, host, nixes, sandbox, storage
from ofborg_async.doctor.examination import report_faults
from ofborg_async.errors import BrokerRefusedError, ConfigFault
from ofborg_async.locks import holder_of
from ofborg_async.model.identity import BrokerSettings, IdentitySettings, NixSettings, Secret
from ofborg_async.nix.handshake import NixDaemon
from ofborg_async.process import Completed

BROKER = BrokerSettings(addresses=(("b", 5671),), vhost="v", username="u", password=Secret("hunter2"))
IDENTITY = IdentitySettings("a", Path("/r"), NixSettings(("x86_64-linux",)), BROKER)
NIX = nixes.NixUse(IDENTITY.nix, (IDENTITY,))
USE = brokers.BrokerUse(BROKER, (IDENTITY,))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = {"sandbox": True, "pre-build-hook": "", "system": "x86_64-linux", "extra-platforms": ["i686-linux"]}


def finding(verdict: Verdict, group: Group = Group.HOST) -> Finding:
    return Finding(group, "", "s", verdict, "c", "r")


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [((), 0), (("ok",), 0), (("ok", "warning", "ok"), 1), (("failure", "warning"), 2)],
)
def test_the_gravest_verdict_is_the_exit_status(verdicts: tuple[str, ...], status: int) -> None:
    assert Report.of(finding(Verdict(verdict)) for verdict in verdicts).exit_status == status


def test_findings_stand_in_the_order_of_their_groups() -> None:
    report = Report.of(finding(Verdict.OK, group) for group in reversed(Group))
    assert [each.group for each in report.findings] == list(Group)
    assert document_of(report)["findings"][0] == {
        "group": "configuration",
        "requirement": "",
        "subject": "s",
        "verdict": "ok",
        "cause": "c",
        "remedy": "r",
    }


def test_faults_of_the_configuration_are_failures_with_their_place() -> None:
    report = report_faults([ConfigFault("f.toml", "identity[a].name", "is bad", 3)])
    (found,) = report.findings
    assert (found.subject, found.cause, report.exit_status) == ("f.toml:3: identity[a].name", "is bad", 2)


@pytest.mark.parametrize(
    ("uid", "shell", "allow_root", "verdict"),
    [
        (0, "/bin/bash", False, Verdict.FAILURE),
        (0, "/bin/bash", True, Verdict.OK),
        (1000, "/bin/bash", False, Verdict.WARNING),
        (1000, "/usr/sbin/nologin", False, Verdict.OK),
        (399, "/bin/bash", False, Verdict.OK),
        (399, None, False, Verdict.OK),
    ],
)
def test_whose_rights(
    uid: int, shell: str | None, allow_root: bool, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(_: int) -> pwd.struct_passwd:
        if shell is None:
            raise KeyError(uid)
        return pwd.struct_passwd(("someone", "x", uid, uid, "", "/h", shell))

    monkeypatch.setattr(pwd, "getpwuid", entry)
    found = host.examine_user(uid, allow_root=allow_root)
    assert (found.requirement, found.verdict) == ("R01", verdict)
    assert bool(found.remedy) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("version", "good"), [("2.38", True), ("2.39.5", True), ("3.0", True), ("2.9.1", False), ("", False)]
)
def test_git_is_new_enough(version: str, good: bool) -> None:
    assert (host.git_finding(version) is None) == good


def test_kvm(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    (found,) = host.examine_kvm(["x86_64-linux"], ("kvm",), device)
    assert (found.verdict, "start and fail" in found.cause) == (Verdict.WARNING, True)
    (found,) = host.examine_kvm(["x86_64-linux"], (), device)
    assert "cannot be built here" in found.cause
    device.touch()
    assert [each.verdict for each in host.examine_kvm(["x86_64-linux"], ("kvm",), device)] == [Verdict.OK]
    assert [each.verdict for each in host.examine_kvm(["x86_64-linux"], None, device)] == [Verdict.OK]
    assert [each.verdict for each in host.examine_kvm(["x86_64-linux"], ("big",), device)] == [Verdict.WARNING]
    assert host.examine_kvm(["aarch64-darwin"], (), tmp_path / "none") == []


@pytest.mark.parametrize(
    ("there", "sandboxed", "verdict"),
    [(False, False, "ok"), (True, True, "warning"), (True, False, "failure"), (True, None, "failure")],
)
def test_homeless_shelter(there: bool, sandboxed: bool | None, verdict: str, tmp_path: Path) -> None:
    place = tmp_path / "homeless-shelter"
    if there:
        place.mkdir()
    found = host.examine_homeless(sandboxed, place)
    assert found.verdict == verdict
    assert ("rm -r" in found.remedy) == there


@pytest.mark.parametrize("name", ["sandbox", "build-use-sandbox", "build-use-chroot"])
@pytest.mark.parametrize(
    ("value", "verdict"),
    [(True, None), ("true", None), ("relaxed", "warning"), (False, "failure"), ("false", "failure")],
)
def test_sandbox_by_its_old_and_new_names(name: str, value: object, verdict: str | None) -> None:
    values = {key: said for key, said in GOOD.items() if key != "sandbox"} | {name: value}
    found = nixes.judge_configuration(NIX, values)
    assert [each.verdict for each in found] == [verdict or "ok"]


def test_a_sandbox_that_nix_does_not_speak_of_is_none() -> None:
    assert [each.verdict for each in nixes.judge_configuration(NIX, {})] == ["failure"]


@pytest.mark.parametrize(
    ("wanted", "builders", "verdicts"),
    [
        (("x86_64-linux", "i686-linux"), "", []),
        (("aarch64-linux",), "", ["failure"]),
        (("aarch64-linux",), "ssh://mac aarch64-linux", ["warning"]),
        (("aarch64-linux",), "@/no/such/file", ["failure"]),
    ],
)
def test_systems(wanted: tuple[str, ...], builders: str, verdicts: list[str]) -> None:
    identity = IdentitySettings("a", Path("/r"), NixSettings(wanted), BROKER)
    use = nixes.NixUse(identity.nix, (identity,))
    assert [each.verdict for each in nixes.judge_systems(use, GOOD | {"builders": builders})] == verdicts


def test_a_nix_daemon_of_another_version_and_one_that_trusts() -> None:
    (found,) = nixes.judge_daemon(NIX, NixDaemon("2.18.1", None), "2.8.0", root=False)
    assert (found.requirement, found.verdict) == ("R20", "warning")
    assert "2.18.1" in found.cause
    assert "restart" in found.remedy
    (found,) = nixes.judge_daemon(NIX, NixDaemon("2.8.0", trusts_us=False), "2.8.0", root=False)
    assert found.verdict == "ok"
    (found,) = nixes.judge_daemon(NIX, NixDaemon("", None), "2.8.0", root=False)
    assert found.verdict == "ok"
    _, found = nixes.judge_daemon(NIX, NixDaemon("2.8.0", trusts_us=True), "2.8.0", root=False)
    assert "trusted-users" in found.remedy
    assert len(nixes.judge_daemon(NIX, NixDaemon("2.8.0", trusts_us=True), "2.8.0", root=True)) == 1


def test_the_commands_for_macos_are_those_of_the_operating_guide() -> None:
    assert nixes.RESTART["darwin"] == (
        "sudo launchctl stop org.nixos.nix-daemon; sudo launchctl start org.nixos.nix-daemon"
    )


def completed(returncode: int, stdout: bytes, *, timed_out: bool = False) -> Completed:
    return Completed(
        returncode, stdout, b"", stdout_truncated=False, stderr_truncated=False,
        duration_seconds=1.0, peak_rss_bytes=0, cpu_seconds=0.0, timed_out=timed_out,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("done", "sandboxed", "word"),
    [
        (completed(0, b"ofborg-async-doctor: seen\n"), False, "not sandboxed"),
        (completed(0, b"/nix/store/x\n"), True, "did not see"),
        (completed(1, b"error: executing '/bin/sh': No such file or directory\n"), True, "/bin/sh"),
        (completed(1, b"a\nerror: no build users\n"), None, "no build users"),
        (completed(-15, b"", timed_out=True), None, "took longer"),
        (completed(1, b""), None, "without a word"),
    ],
)
def test_what_the_self_test_shows(done: Completed, sandboxed: bool | None, word: str) -> None:
    test = sandbox.judge(done, Path("/var/tmp/x"))
    assert test.sandboxed is sandboxed
    assert word in test.said


def test_files_in_the_store_and_of_others(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.touch(mode=0o600)
    assert storage.examine_files([mine], os.getuid()) == []
    assert [each.verdict for each in storage.examine_files([mine], os.getuid() + 1)] == (
        [] if os.getuid() == 0 else ["warning"]
    )
    mine.chmod(0o620)
    assert [each.verdict for each in storage.examine_files([mine], os.getuid())] == ["warning"]


def test_a_root_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    found = storage.examine_directory(tmp_path / "file", "root", os.getuid())
    assert (found.requirement, found.verdict) == ("R13", "failure")
    assert "install -d" in found.remedy
    tmp_path.chmod(0o700)
    assert storage.examine_directory(tmp_path, "root", os.getuid()).verdict == "ok"
    assert "chown" in storage.examine_directory(tmp_path, "root", os.getuid() + 1).remedy
    assert "will be made" in storage.examine_directory(tmp_path / "a" / "b", "root", os.getuid()).cause


def test_who_holds_a_lock_file_that_is_not_there(tmp_path: Path) -> None:
    assert holder_of(tmp_path / "none") is None
    (tmp_path / "file").touch()
    assert holder_of(tmp_path / "file" / "none") is None
    assert holder_of(tmp_path / "file") is None


@pytest.mark.parametrize(("days", "verdicts"), [(None, ["ok"]), (100, ["ok"]), (13, ["warning"]), (-1, ["warning"])])
def test_a_certificate_that_ends(days: int | None, verdicts: list[str]) -> None:
    ends = None if days is None else NOW + timedelta(days=days)
    report = ProbeReport("b:5671", "RabbitMQ 3.10.8", ends, _answers())
    assert [each.verdict for each in brokers.judge_probe(USE, report, NOW)] == verdicts


def test_a_queue_that_is_not_there_and_cannot_be_made() -> None:
    queue = USE.queues[0]
    refused = BrokerRefusedError(who="u", vhost="v", resource="q", said="ACCESS_REFUSED", remedy="ask")
    missing = BrokerRefusedError(who="u", vhost="v", resource="q", said="NOT_FOUND", remedy="ask")
    answers = _answers({(Right.EXISTS, queue): missing, (Right.CONFIGURE, queue): refused})
    (found,) = brokers.judge_probe(USE, ProbeReport("b", "", None, answers), NOW)
    assert (found.verdict, "which is missing" in found.cause) == (Verdict.FAILURE, True)


@pytest.mark.parametrize(("seconds", "verdicts"), [(0, ["warning"]), (15, []), (30, []), (31, ["warning"])])
def test_heartbeats(seconds: int, verdicts: list[str]) -> None:
    settings = BrokerSettings((("b", 1),), "v", "u", Secret("p"), heartbeat_seconds=seconds)
    found = brokers.judge_heartbeat(brokers.BrokerUse(settings, (IDENTITY,)))
    assert [each.verdict for each in found] == verdicts


def _answers(refusals: dict[tuple[Right, str], BrokerRefusedError] | None = None) -> tuple[Answer, ...]:
    queue = USE.queues[0]
    asked = [
        *((Right.EXISTS, "exchange", name) for name in ("build-jobs", "logs", "build-results")),
        *((right, "queue", queue) for right in Right),
        *((Right.WRITE, "exchange", name) for name in ("logs", "build-results", "amq.default")),
    ]
    return tuple(Answer(right, kind, name, (refusals or {}).get((right, name))) for right, kind, name in asked)
