"""``doctor`` on a real farm: nothing to say against a good one, and each provoked fault gives exactly its finding."""

from __future__ import annotations

import fcntl
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from attrs import field, frozen
from doctor_place import SYSTEM, Ground, Told, open_ground, status_of

from ofborg_async.lab.namespace import namespaces_work, private_nix
from ofborg_async.lab.rabbitmq import Broker

Provoke = Callable[[Ground], Awaitable[Path]]
USER, PASSWORD = "builder", "s3cret"


@frozen
class Case:
    """A fault, what it must be reported as, and words that cause or remedy must have."""

    provoke: Provoke
    findings: set[tuple[str, str]]
    words: tuple[str, ...]
    nix_settings: dict[str, str] = field(factory=dict)


async def wrong_password(ground: Ground) -> Path:
    return ground.configuration(rabbitmq__password="not-the-password")


async def missing_vhost(ground: Ground) -> Path:
    return ground.configuration(rabbitmq__virtualhost="no-such-vhost")


async def refused_port(ground: Ground) -> Path:
    return ground.configuration(rabbitmq__host="127.0.0.1:1")


async def one_of_two_brokers(ground: Ground) -> Path:
    broker = ground.farm.broker
    return ground.configuration(rabbitmq__host=["127.0.0.1:1", f"{broker.host}:{broker.port}"])


def rights(**permissions: str) -> Provoke:
    async def provoke(ground: Ground) -> Path:
        broker = ground.farm.broker
        user = f"{USER}-{ground.farm.vhost}"
        await broker.add_user(user, PASSWORD)
        await broker.set_permissions(user, ground.farm.vhost, **permissions)
        return ground.configuration(rabbitmq__username=user, rabbitmq__password=PASSWORD)

    return provoke


async def no_queue(ground: Ground) -> Path:
    await ground.farm.broker.delete_queue(f"build-inputs-{SYSTEM}", ground.farm.vhost)
    return ground.configuration()


async def no_nix(ground: Ground) -> Path:
    return only_programs(ground, "git", "curl", "bash")


async def no_curl(ground: Ground) -> Path:
    return only_programs(ground, "git", "bash", "nix", "nix-build", "nix-instantiate")


async def old_git(ground: Ground) -> Path:
    file = only_programs(ground, "bash", "curl", "nix", "nix-build", "nix-instantiate", "setpriv")
    git = Path(ground.environment["PATH"]) / "git"
    git.write_text(f"#!{shutil.which('sh')}\necho git version 2.37.7\n")
    git.chmod(0o755)
    return file


def only_programs(ground: Ground, *names: str) -> Path:
    directory = ground.farm.directory / "bin"
    directory.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found
        (directory / name).symlink_to(found)
    ground.environment["PATH"] = str(directory)
    return ground.configuration()


async def good(ground: Ground) -> Path:
    return ground.configuration()


async def no_daemon_socket(ground: Ground) -> Path:
    environment = {**ground.farm.store.environment, "NIX_DAEMON_SOCKET_PATH": str(ground.farm.directory / "none")}
    return ground.configuration(nix__remote="daemon", nix__environment=environment)


async def foreign_system(ground: Ground) -> Path:
    return ground.configuration({"name": "mac", "nix.systems": ["aarch64-darwin"], "runner.build_all_jobs": True})


async def world_readable_configuration(ground: Ground) -> Path:
    file = ground.configuration()
    file.chmod(0o644)
    return file


async def others_may_write_configuration(ground: Ground) -> Path:
    password = ground.farm.directory / "password"
    password.write_text("lab\n")
    password.chmod(0o600)
    broker = ground.farm.defaults()
    text = ground.configuration().read_text()
    file = ground.farm.directory / "builders.toml"
    file.write_text(
        text.replace(f'rabbitmq.password = "{broker["rabbitmq.password"]}"', f'rabbitmq.password_file = "{password}"')
    )
    file.chmod(0o664)
    return file


async def nested_roots(ground: Ground) -> Path:
    root = ground.farm.directory / "one"
    return ground.configuration(
        {"name": "a", "checkout.root": str(root)}, {"name": "b", "checkout.root": str(root / "x")}
    )


async def one_root_by_two_names(ground: Ground) -> Path:
    (ground.farm.directory / "real").mkdir(mode=0o700)
    (ground.farm.directory / "other").symlink_to("real")
    return ground.configuration(
        {"name": "a", "checkout.root": str(ground.farm.directory / "real")},
        {"name": "b", "checkout.root": str(ground.farm.directory / "other")},
    )


async def root_for_the_group(ground: Ground) -> Path:
    root = ground.farm.directory / "roots" / "good-a"
    root.mkdir(parents=True)
    root.chmod(0o770)
    return ground.configuration()


async def below_a_file(ground: Ground) -> Path:
    (ground.farm.directory / "file").touch()
    return ground.configuration({"name": "a", "checkout.root": str(ground.farm.directory / "file" / "root")})


async def below_the_floor(ground: Ground) -> Path:
    return ground.configuration(limits__disk_floor_bytes=2**60)


async def without_inodes(ground: Ground) -> Path:
    return ground.configuration(limits__disk_floor_inodes=2**31 - 1)


async def longer_than_the_brokers_patience(ground: Ground) -> Path:
    return ground.configuration(nix__attempt_timeout_seconds=7200)


async def slow_heartbeat(ground: Ground) -> Path:
    return ground.configuration(rabbitmq__heartbeat_seconds=120)


CASES = {
    "wrong password": Case(wrong_password, {("R16", "failure")}, ("Login was refused", "change_password")),
    "missing vhost": Case(missing_vhost, {("R16", "failure")}, ("no-such-vhost", "rabbitmqctl add_vhost")),
    "broker refuses": Case(refused_port, {("R10", "failure")}, ("127.0.0.1:1", "connection refused")),
    "one of two brokers": Case(one_of_two_brokers, {("R10", "warning")}, ("127.0.0.1:1", "connection refused")),
    "no rights at all": Case(
        rights(configure="", write="", read=""), {("R16", "failure"), ("R16", "warning")}, ("cannot take jobs", "logs")
    ),
    "no right to read": Case(
        rights(read="^$"), {("R16", "failure"), ("R16", "warning")}, ("cannot take jobs", "set_permissions")
    ),
    "no right to publish logs": Case(
        rights(write="^(build-inputs-.*|build-results|amq\\.default)$"),
        {("R16", "failure")},
        ("cannot publish log lines", "set_permissions"),
    ),
    "no right to publish results": Case(
        rights(write="^(build-inputs-.*|logs|amq\\.default)$"), {("R16", "failure")}, ("cannot publish results",)
    ),
    "no right to publish to queues": Case(
        rights(write="^(build-inputs-.*|logs|build-results)$"), {("R16", "warning")}, ("straight to a queue",)
    ),
    "no right to configure what is there": Case(rights(configure="^$"), set(), ()),
    "no queue": Case(no_queue, {("R16", "warning")}, (f"no queue build-inputs-{SYSTEM}", "nix.systems")),
    "no nix": Case(no_nix, {("R11", "failure")}, ("nix, nix-build, nix-instantiate not found", "install")),
    "no curl": Case(no_curl, {("R11", "warning")}, ("curl not found",)),
    "old git": Case(old_git, {("R11", "failure")}, ("2.37.7", "2.38")),
    "sandbox off": Case(good, {("R18", "failure")}, ("sandbox is false", "sandbox = true"), {"sandbox": "false"}),
    "sandbox relaxed": Case(good, {("R18", "warning")}, ("relaxed",), {"sandbox": "relaxed"}),
    "pre-build-hook": Case(good, {("R19", "warning")}, ("/bin/true",), {"pre-build-hook": "/bin/true"}),
    "unsigned": Case(good, {("", "warning")}, ("require-sigs",), {"require-sigs": "false"}),
    "no kvm among the features": Case(
        good,
        {("R07", "warning")},
        ("without kvm",) if Path("/dev/kvm").exists() else (),
        {"system-features": "benchmark"},
    ),
    "no nix-daemon": Case(no_daemon_socket, {("R05", "failure")}, ("No such file", "start nix-daemon")),
    "foreign system": Case(foreign_system, {("R07", "failure")}, ("not for aarch64-darwin", "extra-platforms")),
    "readable configuration": Case(world_readable_configuration, {("", "failure")}, ("others can read", "chmod 600")),
    "writable configuration": Case(others_may_write_configuration, {("R15", "warning")}, ("change it", "chmod 600")),
    "nested roots": Case(nested_roots, {("R08", "failure")}, ("nested",)),
    "one root by two names": Case(one_root_by_two_names, {("R08", "failure")}, ("the same directory",)),
    "root for the group": Case(root_for_the_group, {("R13", "warning")}, ("0770", "chmod 700")),
    "root below a file": Case(below_a_file, {("R08", "failure")}, ("cannot be looked at", "parent directories")),
    "disk below its floor": Case(below_the_floor, {("", "failure")}, ("no job is taken", "nix-collect-garbage")),
    "inodes below their floor": Case(without_inodes, {("", "failure")}, ("inodes are free",)),
    "limits": Case(longer_than_the_brokers_patience, {("", "warning")}, ("7700 s", "consumer_timeout = 8300000")),
    "heartbeat": Case(slow_heartbeat, {("", "warning")}, ("363 s",)),
}


@pytest.mark.parametrize("name", CASES)
async def test_each_fault_gives_its_finding_and_no_other(name: str, tmp_path: Path, broker: Broker) -> None:
    case = CASES[name]
    nix_settings = {key.replace("-", "_"): value for key, value in case.nix_settings.items()}
    async with open_ground(tmp_path, broker, **nix_settings) as ground:
        told = await ground.examine(await case.provoke(ground))
    assert told.notable == case.findings, told.findings
    assert told.status == status_of(*(verdict for _, verdict in case.findings))
    said = " ".join(f"{each['cause']} {each['remedy']}" for each in told.findings if each["verdict"] != "ok")
    assert [word for word in case.words if word not in said] == []
    assert all(each["remedy"] for each in told.findings if each["verdict"] != "ok")


async def test_nothing_is_said_against_a_good_farm(tmp_path: Path, broker: Broker) -> None:
    async with open_ground(tmp_path, broker) as ground:
        file = ground.configuration()
        before = await ground.farm.queues()
        told = await ground.examine(file)
        assert (told.notable, told.status) == (set(), status_of())
        # It made nothing, and took nothing: no root, no state, no message, no consumer, no binding.
        assert await ground.farm.queues() == before
        assert not ground.state_dir.exists()
        assert not (ground.farm.directory / "roots").exists()
        assert {"R01", "R05", "R11", "R13", "R16", "R18", "R22", "R23", "D23"} <= {
            each["requirement"] for each in told.findings
        }
        status, text = await ground.run(file, "good-b")
        assert status == status_of()
        assert "good-b" in text
        assert "good-a" not in text


async def test_an_identity_that_is_not_there(tmp_path: Path, broker: Broker) -> None:
    async with open_ground(tmp_path, broker) as ground:
        status, text = await ground.run(ground.configuration(), "good-c")
        assert status == 64
        assert "did you mean good-" in text


async def test_a_daemon_that_runs_is_no_fault(tmp_path: Path, broker: Broker) -> None:
    async with open_ground(tmp_path, broker) as ground, ground.farm.daemon(ground.configuration()) as daemon:
        ground.environment["OFBORG_ASYNC_STATE_DIR"] = str(daemon.state_dir)
        told = await ground.examine(ground.configuration())
        assert (told.notable, told.status) == (set(), status_of())
        in_use = [each["cause"] for each in told.findings if "in use by a daemon of ours" in each["cause"]]
        assert len(in_use) == 2
        assert all(str(daemon.pid) in cause for cause in in_use)
        assert await daemon.stop() == 0


async def test_another_builder_in_the_root(tmp_path: Path, broker: Broker) -> None:
    async with open_ground(tmp_path, broker) as ground:
        lock = ground.farm.directory / "roots" / "good-a" / "repo" / "0123" / "builder" / "other.lock"
        lock.parent.mkdir(parents=True)
        for directory in (lock.parent, *list(lock.parents)[:4]):
            directory.chmod(0o700)
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            told = await ground.examine(ground.configuration())
        assert told.notable == {("R08", "failure")}
        assert str(lock) in told.of("R08")[0]["cause"]
        assert told.status == 2


@pytest.mark.skipif(not namespaces_work(), reason="a /nix of its own takes a mount namespace: root on Linux")
@pytest.mark.parametrize("sandbox", ["true", "false"])
async def test_the_sandbox_is_tried(sandbox: str, tmp_path: Path, broker: Broker) -> None:
    """A nix-daemon with the real /nix/store as its place, which alone can build without a sandbox."""
    async with open_ground(tmp_path / "farm", broker) as ground, private_nix(tmp_path / "nix", sandbox=sandbox) as nix:
        told = await ground.examine(ground.configuration(nix__remote="daemon", nix__environment={}), prefix=nix.prefix)
    assert_sandbox(told, sandboxed=sandbox == "true")


def assert_sandbox(told: Told, *, sandboxed: bool) -> None:
    expected = set() if sandboxed else {("R18", "failure"), ("R22", "failure")}
    assert told.notable == expected, told.findings
    assert told.status == (max((1 for each in told.findings if each["verdict"] != "ok"), default=0) if sandboxed else 2)
    if not sandboxed:
        (finding,) = told.of("R22")
        assert "not sandboxed: a build saw" in finding["cause"]
    assert any("nix-daemon 2" in each["cause"] for each in told.findings)


@pytest.mark.skipif(sys.platform != "linux", reason="its words are those of a terminal of Linux")
async def test_what_people_see_fits_their_terminal(tmp_path: Path, broker: Broker) -> None:
    async with open_ground(tmp_path, broker) as ground:
        ground.environment["COLUMNS"] = "80"
        status, text = await ground.run(ground.configuration(rabbitmq__password="not-the-password"))
    assert status == 2
    assert max(map(len, text.splitlines())) <= 80
    assert "not-the-password" not in text
    assert text.splitlines()[-1].endswith("1 to mend")
