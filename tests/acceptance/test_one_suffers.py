"""What befalls one identity leaves its sibling at work, is shown within a minute, and heals (promises 4 and 12)."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import crashing_daemon
import pytest
from asked import command
from attrs import frozen
from gated import building
from waits import eventually

import ofborg_async
from ofborg_async.lab.farm import DaemonProcess, Farm, open_farm
from ofborg_async.lab.rabbitmq import ADMIN, Broker, private_broker
from ofborg_async.lab.upstream import create_upstream
from ofborg_async.model.status import AmqpState, IdentityState

UNWELL_SECONDS = 60.0
QUARANTINE_SECONDS = 4.0
"""Long enough to look at it more than once, short enough to wait for its end."""
GOOD, POOR = "x86_64-linux", "i686-linux"
WITHOUT_RIGHTS = (str(shutil.which("setpriv")), "--bounding-set=-dac_override,-dac_read_search", "--")
AS_A_USER = WITHOUT_RIGHTS if os.getuid() == 0 else ()
"""Words before a daemon for whom permissions count, also where root starts it."""


@frozen
class Pair:
    """``good`` builds for one system and ``poor`` for another, so that each has a queue of its own."""

    farm: Farm
    daemon: DaemonProcess

    @property
    def root(self) -> Path:
        """That of ``poor``."""
        return self.farm.directory / "roots" / "poor"

    async def submit(self, number: int, system: str) -> None:
        """Ask for a build that succeeds wherever it can be tried."""
        head = await self.farm.upstream.open_pr(number, {"doc/x": f"{number}"})
        await self.farm.submit(system, self.farm.upstream.job(number, head, ["ok"]))

    async def expect(self, *numbers: int) -> None:
        """These pull requests, and no others, have a result."""
        results = await self.farm.tap.wait_for_results(len(numbers))
        assert sorted(result["pr"]["number"] for result in results) == sorted(numbers)
        assert {result["status"] for result in results} == {"Success"}

    async def state(self) -> IdentityState:
        """That of ``poor``."""
        return (await self.daemon.status()).identities[1].state

    async def why(self) -> str:
        """Of ``poor``, as the command says it."""
        return (await command(self.daemon, "why", "poor"))[1]

    async def well(self) -> bool:
        """Whether the command says that all is."""
        return (await command(self.daemon, "status"))[0] == 0


@contextlib.asynccontextmanager
async def pair(
    tmp_path: Path,
    broker: Broker,
    *,
    user: str = ADMIN,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    **changes: object,
) -> AsyncIterator[Pair]:
    """``user`` is that of ``poor``, and its own password; ``changes`` as for ``Farm.configuration``."""
    async with open_farm(tmp_path, broker, GOOD, POOR) as farm:
        file = farm.configuration(
            {"name": "good", "nix.systems": [GOOD]},
            {"name": "poor", "nix.systems": [POOR], "rabbitmq.username": user, "rabbitmq.password": user},
            limits__host_fault_retries=0,
            limits__quarantine_after=2,
            **changes,
        )
        if user != ADMIN:
            await broker.add_user(user, user)
            await broker.set_permissions(user, farm.vhost)
        async with farm.daemon(file, environment=environment, prefix=prefix) as daemon:
            yield Pair(farm, daemon)
            assert await daemon.stop() == 0


async def test_a_deleted_queue(tmp_path: Path, broker: Broker) -> None:
    async with pair(tmp_path, broker) as both:
        await broker.delete_queue(f"build-inputs-{POOR}", both.farm.vhost)
        await both.submit(1, GOOD)
        await both.expect(1)

        async def consumed() -> bool:
            return any(at.queue == f"build-inputs-{POOR}" for at in await broker.list_consumers(both.farm.vhost))

        await eventually("the queue is there again, and consumed", consumed)
        await both.submit(2, POOR)
        await both.expect(1, 2)


async def test_a_deleted_queue_that_may_not_be_made_again(tmp_path: Path, broker: Broker) -> None:
    user = "may-not-declare"  # of this test alone: the broker is shared by all
    async with pair(tmp_path, broker, user=user) as both:
        queue = f"build-inputs-{POOR}"
        await broker.set_permissions(user, both.farm.vhost, configure="^$")
        await broker.delete_queue(queue, both.farm.vhost)

        async def unhealthy() -> bool:
            return (await command(both.daemon, "status"))[0] > 0

        await eventually("status is unhealthy", unhealthy, UNWELL_SECONDS)
        reason = await eventually("the reason", partial(said_by, both.why, "The broker refuses it"), UNWELL_SECONDS)
        assert f"no queue '{queue}'" in reason
        assert "set_permissions" in reason
        text = " ".join((await command(both.daemon, "status"))[1].split())
        assert f"no queue '{queue}'" in text
        await both.submit(1, GOOD)
        await both.expect(1)
        assert queue not in await both.farm.queues()
        await broker.set_permissions(user, both.farm.vhost)
        await eventually("all is well again", both.well, UNWELL_SECONDS)
        await both.submit(2, POOR)
        await both.expect(1, 2)
    await broker.delete_user(user)


async def test_a_crash_loop(tmp_path: Path, broker: Broker) -> None:
    cause = tmp_path / "cause"
    cause.touch()
    prefix = (sys.executable, crashing_daemon.__file__, "poor", str(cause))
    environment = {
        "PYTHONPATH": str(Path(ofborg_async.__file__).parents[1]),
        "OFBORG_ASYNC_RESTART_INTENSITY": "3",
        "OFBORG_ASYNC_BACKOFF_FIRST_SECONDS": "0.05",
        "OFBORG_ASYNC_BACKOFF_MAX_SECONDS": "0.1",
    }
    async with pair(tmp_path, broker, environment=environment, prefix=prefix) as both:

        async def given_up() -> bool:
            return await both.state() is IdentityState.FAILED

        await eventually("it is given up", given_up, UNWELL_SECONDS)
        assert "failed too often: a mistake of the lab" in await both.why()
        assert (await command(both.daemon, "status"))[0] == 2
        await both.submit(1, GOOD)
        await both.submit(2, POOR)
        await both.expect(1)
        # Whatever the operator does, the cause is there.
        assert (await command(both.daemon, "restart", "poor"))[0] == 0
        await eventually("it is given up again", given_up, UNWELL_SECONDS)
        cause.unlink()
        assert (await command(both.daemon, "restart", "poor"))[0] == 0
        await both.expect(1, 2)
        await eventually("all is well again", both.well, UNWELL_SECONDS)
        good, poor = (await both.daemon.status()).identities
        assert good.restarts == 0
        assert poor.restarts >= 3


async def said_by(source: Callable[[], Awaitable[str]], words: str) -> str:
    """What it says, once it has the words; until then nothing."""
    text = await source()
    return text if words in text else ""


def put_a_file_there(root: Path) -> None:
    (root / "repo").write_text("somebody put a file where folders were")


def take_it_away(root: Path) -> None:
    (root / "repo").unlink()


@pytest.mark.parametrize(
    ("spoil", "mend", "prefix"),
    [
        (put_a_file_there, take_it_away, ()),
        (lambda root: root.chmod(0o500), lambda root: root.chmod(0o700), AS_A_USER),
    ],
    ids=["a file in it", "not writable"],
)
async def test_a_root_that_cannot_be_used(
    tmp_path: Path, broker: Broker, spoil: Callable[[Path], None], mend: Callable[[Path], None], prefix: tuple[str, ...]
) -> None:
    # Whatever working directory a prefix leaves it in, it is this package.
    environment = {"PYTHONPATH": str(Path(ofborg_async.__file__).parents[1])}
    async with pair(tmp_path, broker, prefix=prefix, environment=environment) as both:
        spoil(both.root)
        await both.submit(1, POOR)
        await both.submit(2, GOOD)
        await both.expect(2)

        async def quarantined() -> bool:
            return await both.state() is IdentityState.QUARANTINED

        await eventually("quarantine", quarantined, UNWELL_SECONDS)
        _, text = await command(both.daemon, "why", "poor", "--json")
        assert str(both.root) in text
        assert (await command(both.daemon, "status"))[0] > 0
        assert (await both.farm.queues())[f"build-inputs-{POOR}"].messages == 1
        mend(both.root)
        assert (await command(both.daemon, "resume", "poor"))[0] == 0
        await both.expect(1, 2)


async def test_a_quarantine_ends_by_itself(tmp_path: Path, broker: Broker) -> None:
    """It takes nothing meanwhile and says why; then it tries again, as often as it takes, without an operator."""
    other = await create_upstream(tmp_path / "other.git")
    async with pair(tmp_path, broker, limits__quarantine_seconds=QUARANTINE_SECONDS) as both:
        queue = f"build-inputs-{POOR}"
        away = both.farm.upstream.path.with_name("away")
        await both.submit(1, GOOD)
        await both.expect(1)
        head = await both.farm.upstream.open_pr(2, {"doc/x": "2"})
        both.farm.upstream.path.rename(away)
        await both.farm.submit(POOR, both.farm.upstream.job(2, head, ["ok"]))

        async def said_of_one_quarantine() -> str:
            """What ``why`` says in a quarantine, in which its queue is not consumed."""
            before = (await both.daemon.status()).identities[1]
            _, why = await command(both.daemon, "why", "poor")
            consumed = any(at.queue == queue for at in await broker.list_consumers(both.farm.vhost))
            after = (await both.daemon.status()).identities[1]
            if (before.state, before.state_since) != (IdentityState.QUARANTINED, after.state_since):
                return ""
            assert not consumed
            return why

        why = await eventually("quarantine", said_of_one_quarantine, UNWELL_SECONDS)
        assert "It is quarantined: 2 jobs in a row failed for a reason of this host" in why
        assert str(both.farm.upstream.path) in why
        assert (await both.farm.queues())[queue].messages == 1

        await both.farm.submit(GOOD, other.job(3, await other.open_pr(3, {"doc/x": "3"}), ["ok"]))
        await both.expect(1, 3)
        await eventually(
            "it tried again, in vain",
            lambda: both.daemon.log.read_text().count("poor is quarantined") >= 2,
            UNWELL_SECONDS,
        )
        away.rename(both.farm.upstream.path)
        await both.expect(1, 2, 3)


@pytest.mark.timeout(180)
async def test_a_blocked_broker_shows_and_the_build_goes_on(tmp_path: Path) -> None:
    async with building(tmp_path, "lab-a") as (broker, stage, daemon):
        await broker.set_memory_alarm(on=True)
        stage.open()

        async def blocked() -> bool:
            return (await daemon.status()).identities[0].systems[0].amqp is AmqpState.BLOCKED

        await eventually("blocked is shown", blocked, UNWELL_SECONDS)
        code, text = await command(daemon, "status")
        assert code > 0
        assert "blocked" in text
        await broker.set_memory_alarm(on=False)
        await stage.assert_one_result()
        assert await daemon.stop() == 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["connections closed", "broker killed", "one queue deleted"])
async def test_both_systems_of_an_identity_come_back(tmp_path: Path, how: str) -> None:
    """One connection for both, or a channel for each, is lost: none of them stays behind without a word."""
    async with (
        private_broker(tmp_path / "node") as broker,
        open_farm(tmp_path, broker, GOOD, POOR) as farm,
        farm.daemon(farm.configuration("both")) as daemon,
    ):
        before = {at.queue for at in await broker.list_consumers(farm.vhost)}
        if how == "connections closed":
            await broker.close_all_connections()
        elif how == "broker killed":
            broker.kill()
            await broker.start()
        else:
            await broker.delete_queue(f"build-inputs-{GOOD}", farm.vhost)
            await farm.tap.declare_jobs(GOOD)
        await farm.tap.connect()
        for number, system in enumerate((GOOD, POOR), 1):
            head = await farm.upstream.open_pr(number, {"doc/x": f"{number}"})
            await farm.submit(system, farm.upstream.job(number, head, ["ok"]))
        results = await farm.tap.wait_for_results(2)
        assert {(result["system"], result["status"]) for result in results} == {(GOOD, "Success"), (POOR, "Success")}
        await farm.until_settled()
        await eventually("both queues are consumed", lambda: are_consumed(broker, farm, before))
        states = [system.amqp for system in (await daemon.status()).identities[0].systems]
        assert states == [AmqpState.CONSUMING] * 2
        assert await daemon.stop() == 0


async def are_consumed(broker: Broker, farm: Farm, queues: set[str]) -> bool:
    return {at.queue for at in await broker.list_consumers(farm.vhost)} >= queues
