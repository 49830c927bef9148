"""A changed configuration in a running daemon: identity by identity, with real builds, and nothing lost or doubled."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from asked import command
from gated import SYSTEM, Gated, gated
from waits import eventually

from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import ADMIN, Broker
from ofborg_async.lab.wiretap import RESULTS
from ofborg_async.locks import holder_of
from ofborg_async.model.status import AmqpState, IdentitySnapshot, IdentityState, Phase

OTHER = "aarch64-linux"
WORKING = {IdentityState.IDLE, IdentityState.BUSY}


async def reload(daemon: DaemonProcess, status: int = 0) -> dict[str, dict[str, object]]:
    """Reload by the command; the rows of its answer by identity."""
    returned, printed = await command(daemon, "reload", "--json")
    assert returned == status, printed
    return {row["name"]: row for row in json.loads(printed)["identities"]}


async def rows(daemon: DaemonProcess) -> dict[str, IdentitySnapshot]:
    return {row.name: row for row in (await daemon.status()).identities}


async def settled(daemon: DaemonProcess, *names: str) -> None:
    """These identities, and no others, are there and take work."""

    async def is_so() -> bool:
        found = await rows(daemon)
        return set(found) == set(names) and all(row.state in WORKING for row in found.values())

    await eventually(f"{', '.join(names)} at work", is_so, 60)


async def one_link(daemon: DaemonProcess) -> set[str]:
    """Wait until all others are closed; who uses it."""

    async def the_one() -> tuple[str, ...]:
        brokers = (await daemon.status()).brokers
        return brokers[0].identities if len(brokers) == 1 else ()

    return set(await eventually("the links that nobody uses to be closed", the_one))


async def consumers(farm: Farm) -> dict[str, str]:
    """The channel of each consumer, by its tag: another channel means that it connected anew."""
    rows = await farm.broker.evaluate(
        "[[proplists:get_value(consumer_tag, C), list_to_binary(pid_to_list(proplists:get_value(channel_pid, C)))]"
        f' || C <- rabbit_amqqueue:consumers_all(<<"{farm.vhost}">>)]'
    )
    return {tag: channel for tag, channel in rows if tag.endswith("-builder")}


def here(stage: Gated, *identities: str | Mapping[str, object], **changes: object) -> Path:
    return stage.farm.configuration(*identities, **changes)


@pytest.mark.timeout(240)
async def test_added_removed_changed_and_unchanged_while_a_build_runs(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage:
        gone = {"name": "gone", "nix.systems": [OTHER]}
        other = {"name": "other", "nix.systems": [OTHER]}
        async with stage.farm.daemon(here(stage, "builds", gone, other)) as daemon:
            await stage.start_job()
            before = await consumers(stage.farm)
            document = await daemon.status()
            here(stage, "builds", {**other, "runner.weight": 3}, {"name": "new", "nix.systems": [OTHER]})
            changed = (await daemon.status()).config_changed
            assert changed
            answer = await reload(daemon)
            assert {name: (row["change"], row["keys"]) for name, row in answer.items()} == {
                "builds": ("unchanged", []),
                "gone": ("removed", []),
                "other": ("changed", ["runner.weight"]),
                "new": ("added", []),
            }
            await settled(daemon, "builds", "other", "new")
            after = await daemon.status()
            assert not after.config_changed
            assert after.fingerprint != document.fingerprint
            assert after.pid == document.pid
            assert holder_of(tmp_path / "roots" / "gone" / ".ofborg-async.lock") is None
            assert holder_of(tmp_path / "roots" / "new" / ".ofborg-async.lock") is not None

            # The one that builds goes on as it was; the others listen anew, and the one that is gone does not.
            job = (await rows(daemon))["builds"].systems[0].job
            assert job is not None
            now = await consumers(stage.farm)
            tag = {name: f"{name}-{OTHER}-builder" for name in ("gone", "other", "new")}
            assert set(now) == {f"builds-{SYSTEM}-builder", tag["other"], tag["new"]}
            assert now[f"builds-{SYSTEM}-builder"] == before[f"builds-{SYSTEM}-builder"]
            assert now[tag["other"]] != before[tag["other"]]
            stage.open()
            await stage.assert_one_result()
            assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_changed_identity_finishes_its_job_before_it_restarts(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage, stage.farm.daemon(here(stage, "lab-a")) as daemon:
        await stage.start_job()
        elsewhere = tmp_path / "elsewhere"
        here(stage, {"name": "lab-a", "checkout.root": str(elsewhere)})
        answer = await reload(daemon)
        assert answer["lab-a"]["keys"] == ["checkout.root"]
        assert answer["lab-a"]["effect"] == "it restarts once its job is over"
        row = (await rows(daemon))["lab-a"]
        assert (row.state, row.reason) == (IdentityState.DRAINING, "its configuration changed (checkout.root)")
        # Another reload in the meantime: what it says is what is started in the end.
        here(stage, {"name": "lab-a", "checkout.root": str(elsewhere), "runner.weight": 2})
        assert (await reload(daemon))["lab-a"]["keys"] == ["runner.weight"]
        assert not elsewhere.exists()
        stage.open()
        await stage.assert_one_result()
        await settled(daemon, "lab-a")
        assert (await rows(daemon))["lab-a"].root == str(elsewhere)
        assert holder_of(tmp_path / "roots" / "lab-a" / ".ofborg-async.lock") is None
        assert holder_of(elsewhere / ".ofborg-async.lock") is not None
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("grace_seconds", [0, 120])
async def test_the_job_of_a_removed_identity_ends_or_goes_back(
    tmp_path: Path, broker: Broker, grace_seconds: int
) -> None:
    environment = {"OFBORG_ASYNC_SHUTDOWN_GRACE_SECONDS": str(grace_seconds)}
    async with gated(tmp_path, broker) as stage:
        stays = {"name": "stays", "nix.systems": [OTHER]}
        async with stage.farm.daemon(here(stage, "lab-a", stays), environment=environment) as daemon:
            await stage.start_job()
            here(stage, stays)
            answer = await reload(daemon)
            assert answer["lab-a"]["effect"] == f"its job has {grace_seconds} s to end"
            if grace_seconds:
                assert "lab-a" in await rows(daemon)
                stage.open()
            await settled(daemon, "stays")
            assert holder_of(tmp_path / "roots" / "lab-a" / ".ofborg-async.lock") is None
            if not grace_seconds:
                queue = (await stage.farm.queues())[f"build-inputs-{SYSTEM}"]
                assert (queue.messages, queue.ready) == (1, 1)
                assert stage.farm.tap.results() == []
                (entry,) = await daemon.client.history()
                assert (entry.status, entry.identity) == ("Requeued", "lab-a")
                assert entry.durations_seconds["build"] > 0
                # Whoever comes next builds it.
                here(stage, "lab-a", stays)
                stage.open()
                assert (await reload(daemon))["lab-a"]["change"] == "added"
                (result,) = await stage.farm.tap.wait_for_results(1)
                assert result["status"] == "Success"
            else:
                await stage.assert_one_result()
            assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_two_identities_swap_their_roots_by_a_sighup(tmp_path: Path, broker: Broker) -> None:
    first, second = str(tmp_path / "roots" / "a"), str(tmp_path / "roots" / "b")
    async with gated(tmp_path, broker) as stage:

        def write(one: str, other: str) -> Path:
            busy = {"name": "busy", "checkout.root": one}
            return here(stage, busy, {"name": "idle", "checkout.root": other, "nix.systems": [OTHER]})

        async with stage.farm.daemon(write(first, second)) as daemon:
            await stage.start_job()
            write(second, first)
            daemon.signal(signal.SIGHUP)
            # The idle one has left its root, and waits until the other's build is over.
            wanted = "it waits for its new root, which busy leaves once its job is over"

            async def waits() -> bool:
                return (await rows(daemon))["idle"].reason == wanted

            await eventually("the idle one to wait for the root", waits)
            assert holder_of(Path(second) / ".ofborg-async.lock") is None
            stage.open()
            await stage.assert_one_result()
            await settled(daemon, "busy", "idle")
            found = await rows(daemon)
            assert {name: (row.root, row.lock) for name, row in found.items()} == {
                "busy": (second, "held"),
                "idle": (first, "held"),
            }
            said = daemon.log.read_text()
            assert "reload: idle: changed (checkout.root)" in said
            assert "is held by" not in said
            assert await daemon.stop() == 0


@pytest.mark.timeout(120)
async def test_a_faulty_file_changes_nothing_and_every_fault_is_told(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm, farm.daemon(farm.configuration("lab-a")) as daemon:
        before, heard = await daemon.status(), await consumers(farm)
        file = farm.configuration(
            {"name": "lab-a", "checkout.root": str(tmp_path / "x")},
            {"name": "lab-b", "checkout.root": str(tmp_path / "x"), "runner.wieght": 2},
        )
        status, printed = await command(daemon, "reload")
        assert status == 78
        assert "wieght" in printed
        assert "are the same directory" in printed
        assert "2 faults: nothing was changed." in printed
        assert str(file) in printed
        status, printed = await command(daemon, "reload", "--json")
        assert status == 78
        assert len(json.loads(printed)["faults"]) == 2
        after = await daemon.status()
        assert (after.fingerprint, after.config_changed) == (before.fingerprint, True)
        assert await consumers(farm) == heard
        # As with check, a mended file is all it takes.
        farm.configuration("lab-a", "lab-b")
        assert {name: row["change"] for name, row in (await reload(daemon)).items()} == {
            "lab-a": "unchanged",
            "lab-b": "added",
        }
        await settled(daemon, "lab-a", "lab-b")
        assert await daemon.stop() == 0


@pytest.mark.timeout(120)
async def test_a_new_password_in_its_file_is_a_change(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        password = tmp_path / "password"
        password.touch(mode=0o600)
        password.write_text("wrong\n")
        refused = {"name": "refused", "rabbitmq.password_file": str(password)}
        async with farm.daemon(farm.configuration("well", refused)) as daemon:

            async def is_refused() -> bool:
                return (await rows(daemon))["refused"].systems[0].amqp is AmqpState.REFUSED

            await eventually("the login to be refused", is_refused)
            assert len((await daemon.status()).brokers) == 2
            heard = await consumers(farm)
            password.write_text(f"{ADMIN}\n")
            answer = await reload(daemon)
            assert {name: (row["change"], row["keys"]) for name, row in answer.items()} == {
                "well": ("unchanged", []),
                "refused": ("changed", ["rabbitmq.password"]),
            }
            await settled(daemon, "well", "refused")
            assert heard.items() <= (await consumers(farm)).items()

            assert await one_link(daemon) == {"well", "refused"}
            assert "wrong" not in daemon.log.read_text()
            assert await daemon.stop() == 0


@pytest.mark.timeout(120)
async def test_keys_of_the_daemon_and_what_the_operator_ordered(tmp_path: Path, broker: Broker) -> None:
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        file = farm.configuration("paused", "drained", "plain")
        async with farm.daemon(file) as daemon:
            await command(daemon, "pause", "paused", "--reason", "a new disk")
            await command(daemon, "drain", "drained", "--wait")
            farm.configuration("paused", "drained", "plain", runner__weight=2)
            file.write_text('[daemon]\nmax_builds = 7\nlog_format = "json"\n' + file.read_text())
            status, printed = await command(daemon, "reload")
            assert status == 0
            assert "in effect now: daemon.max_builds\n" in printed
            assert "only after a restart of the daemon: daemon.log_format\n" in printed
            await eventually("the restart", lambda: has_restarted(daemon))
            found = await rows(daemon)
            assert (found["paused"].state, found["paused"].reason) == (IdentityState.PAUSED, "a new disk")
            assert found["drained"].state is IdentityState.STOPPED
            slots = {slot.name: slot.total for slot in (await daemon.status()).slots}
            assert slots["builds"] == 7
            # Said again, because it is still so.
            assert "daemon.log_format" in (await command(daemon, "reload"))[1]
            await command(daemon, "resume")
            await settled(daemon, "paused", "drained", "plain")
            assert await daemon.stop() == 0


async def has_restarted(daemon: DaemonProcess) -> bool:
    return (await rows(daemon))["plain"].state is IdentityState.IDLE


@pytest.mark.timeout(240)
async def test_a_result_that_the_old_password_cannot_send_goes_out_by_the_new_one(
    tmp_path: Path, broker: Broker
) -> None:
    async with gated(tmp_path, broker) as stage:
        farm, user, password = stage.farm, f"user-{tmp_path.name}", tmp_path / "password"
        password.touch(mode=0o600)
        password.write_text("old")
        await broker.add_user(user, "old")
        try:
            await broker.set_permissions(user, vhost=farm.vhost)
            login = {"rabbitmq.username": user, "rabbitmq.password_file": str(password)}
            async with farm.daemon(farm.configuration({"name": "lab-a", **login})) as daemon:
                await stage.start_job()
                await broker.change_password(user, "new")
                await broker.evaluate(
                    "[rabbit_networking:close_connection(C, <<>>) || [{pid, C}, {user, U}] <-"
                    f' rabbit_networking:connection_info_all([pid, user]), U =:= <<"{user}">>], ok'
                )
                stage.open()

                async def reports() -> bool:
                    job = (await rows(daemon))["lab-a"].systems[0].job
                    return job is not None and job.phase is Phase.REPORT and "refused" in job.waiting_for

                await eventually("the result to wait for a login", reports, 60)
                password.write_text("new")
                assert (await reload(daemon))["lab-a"]["keys"] == ["rabbitmq.password"]
                await stage.assert_one_result()
                await settled(daemon, "lab-a")
                assert await one_link(daemon) == {"lab-a"}
                assert await daemon.stop() == 0
        finally:
            await broker.delete_user(user)


@pytest.mark.timeout(120)
async def test_a_result_without_an_identity_goes_out_once_the_identity_is_back(tmp_path: Path, broker: Broker) -> None:
    """It could not be routed, its identity was removed, the daemon started anew: it waits for a reload."""
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        stays = {"name": "stays", "nix.systems": [OTHER]}
        quick = {"rabbitmq.unroutable_hold_seconds": 0.1}
        async with farm.daemon(farm.configuration({"name": "lab-a", **quick}, stays)) as daemon:
            await farm.tap.unbind(RESULTS)
            head = await farm.upstream.open_pr(1, {"doc/x": "x"})
            await farm.submit(SYSTEM, farm.upstream.job(1, head, ["ok"]))

            async def is_kept() -> bool:
                return (await rows(daemon))["lab-a"].results_waiting == 1

            await eventually("the result to be kept", is_kept)
            farm.configuration(stays)
            await reload(daemon)
            await settled(daemon, "stays")
            assert await daemon.stop() == 0
            await daemon.start()
            assert "stays in the outbox: no identity lab-a" in daemon.log.read_text()
            await farm.tap.connect()
            farm.configuration("lab-a", stays)
            await reload(daemon)
            (result,) = await farm.tap.wait_for_results(1)
            assert result["status"] == "Success"
            assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_reloads_in_a_row_under_load_lose_and_double_nothing(tmp_path: Path, broker: Broker) -> None:
    jobs = 8
    environment = {"OFBORG_ASYNC_SHUTDOWN_GRACE_SECONDS": "120"}
    async with open_farm(tmp_path, broker, SYSTEM) as farm:
        roots = [str(tmp_path / "roots" / name) for name in ("x", "y", "z")]

        def write(turn: int) -> Path:
            """Every time other roots, and in every third turn without lab-b."""
            names = ("lab-a", "lab-c") if turn % 3 == 2 else ("lab-a", "lab-b", "lab-c")
            return farm.configuration(
                *({"name": name, "checkout.root": roots[(turn + n) % 3]} for n, name in enumerate(names))
            )

        async with farm.daemon(write(0), environment=environment) as daemon:
            for number in range(1, jobs + 1):
                head = await farm.upstream.open_pr(number, {"doc/x": f"{number}"})
                await farm.submit(SYSTEM, farm.upstream.job(number, head, ["ok"]))
                status, printed = await command(daemon, "reload") if number % 2 else (0, "")
                assert status == 0, printed
                write(number)
            results = await farm.tap.wait_for_results(jobs, deadline_seconds=120)
            await farm.until_settled(deadline_seconds=120)
            assert sorted(result["pr"]["number"] for result in farm.tap.results()) == list(range(1, jobs + 1))
            assert {result["status"] for result in results} == {"Success"}
            write(0)
            await reload(daemon)
            await settled(daemon, "lab-a", "lab-b", "lab-c")
            assert {row.root for row in (await rows(daemon)).values()} == set(roots)
            said = daemon.log.read_text()
            assert "Traceback" not in said, said[max(0, said.find("Traceback") - 800) :][:3000]
            assert "is held by" not in daemon.log.read_text()
            assert await daemon.stop() == 0


@pytest.mark.timeout(240)
async def test_a_stop_while_a_changed_identity_ends_its_job(tmp_path: Path, broker: Broker) -> None:
    async with gated(tmp_path, broker) as stage, stage.farm.daemon(here(stage, "lab-a", "lab-b")) as daemon:
        await stage.start_job()
        here(stage, "lab-a", "lab-b", runner__weight=2)
        await reload(daemon)
        assert await daemon.stop() == 0
        queue = (await stage.farm.queues())[f"build-inputs-{SYSTEM}"]
        assert (queue.messages, queue.ready) == (1, 1)
        assert stage.farm.tap.results() == []
        assert "Traceback" not in daemon.log.read_text()
