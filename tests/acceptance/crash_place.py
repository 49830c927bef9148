"""A daemon that dies at points and is started again, with what it needs around it, for many tests one after the other.

Starting a daemon is what such a test costs most, so one test leaves the recovered daemon to the next one, idle.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import hasty_daemon
from attrs import define, field, frozen
from running import processes_with
from waits import eventually

from ofborg_async.crashpoints import VARIABLE, CrashPoint
from ofborg_async.lab.farm import DaemonProcess, Farm
from ofborg_async.lab.rabbitmq import Broker
from ofborg_async.lab.store import Store, create_store, static_shell
from ofborg_async.lab.upstream import Upstream, create_upstream
from ofborg_async.lab.wiretap import RESULTS, Wiretap, job_queue, wiretap

SYSTEM = "x86_64-linux"
IDENTITIES = ("lab-a", "lab-b")
MAX_ATTEMPTS = 3

PACKAGES = """
{ system ? builtins.currentSystem, supportedSystems ? [ ], ... }:
let
  token = builtins.readFile ./token;
  mk = name: script: derivation {
    inherit name system; builder = "/bin/sh"; args = [ "-c" "${script}; echo ${token} > $out" ];
  };
in {
  quick = mk "quick" "for n in NUMBERS; do echo line $n of ${token}; done";
  gated = mk "gated" "echo begins; while [ ! -e /gate/${token} ]; do sleep 0.05; done; echo through";
}
""".replace("NUMBERS", " ".join(map(str, range(1, 26))))


@define
class CrashPlace:
    """What outlives one test."""

    directory: Path
    broker: Broker
    vhost: str
    upstream: Upstream
    store: Store
    daemon: DaemonProcess
    point_file: Path
    numbers: itertools.count[int] = field(factory=lambda: itertools.count(1))

    @classmethod
    async def make(cls, directory: Path, broker: Broker) -> CrashPlace:
        """Everything but a running daemon, in ``directory``."""
        (directory / "gate").mkdir()
        shell = f"/bin/sh={static_shell()}"
        store = await create_store(directory / "store", sandbox_paths=f"{shell} /gate={directory / 'gate'}")
        upstream = await create_upstream(directory / "upstream.git", {"default.nix": PACKAGES, "token": "0"})
        vhost = f"crash-{directory.name}"
        await broker.add_vhost(vhost)
        point_file = directory / "point"
        farm = Farm(directory, broker, vhost, upstream, store, Wiretap(""), (SYSTEM,))
        file = farm.configuration(
            *IDENTITIES,
            limits__host_fault_retries=0,
            limits__max_attempts=MAX_ATTEMPTS,
            limits__quarantine_after=1,
            limits__quarantine_seconds=0.1,
        )
        daemon = DaemonProcess(
            directory / "daemon",
            [file],
            environment={VARIABLE: str(point_file), "PYTHONPATH": ":".join(filter(None, sys.path))},
            prefix=[sys.executable, hasty_daemon.__file__],
        )
        return cls(directory, broker, vhost, upstream, store, daemon, point_file)

    async def remove(self) -> None:
        """End the daemon and take everything away."""
        self.daemon.close()
        await self.broker.delete_vhost(self.vhost)
        self.store.remove()

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Visit]:
        """One test's stay, with the daemon running and idle. A test that fails spoils nothing for the next."""
        well = False
        try:
            async with wiretap(self.broker.url(vhost=self.vhost), SYSTEM) as tap:
                farm = Farm(self.directory, self.broker, self.vhost, self.upstream, self.store, tap, (SYSTEM,))
                if not self.daemon.running:
                    await self.daemon.start()
                yield Visit(self, farm)
            well = True
        finally:
            self.point_file.unlink(missing_ok=True)
            if not well:
                self.daemon.close()
                shutil.rmtree(self.daemon.state_dir, ignore_errors=True)
                await self.broker.delete_queue(job_queue(SYSTEM), self.vhost)


@frozen
class Job:
    """A job that was submitted."""

    number: int
    head: str
    statusreport: list[str | None]


@define
class Visit:
    """What a scenario does, and what it looks at afterwards."""

    place: CrashPlace
    farm: Farm

    @property
    def daemon(self) -> DaemonProcess:
        """The daemon that dies and comes back."""
        return self.place.daemon

    @property
    def tap(self) -> Wiretap:
        """What its peers hear."""
        return self.farm.tap

    def arm(self, point: CrashPoint) -> None:
        """Name the point at which the daemon dies, whenever it comes there."""
        fresh = self.place.point_file.with_suffix(".new")
        fresh.write_text(str(point))
        fresh.rename(self.place.point_file)

    async def submit(self, attr: str = "quick", *, statusreport: list[str | None] | None = None) -> Job:
        """Publish a job of a pull request of its own."""
        number = next(self.place.numbers)
        head = await self.farm.upstream.open_pr(number, {"token": str(number)})
        job = Job(number, head, statusreport or [RESULTS, None])
        await self.farm.submit(SYSTEM, self.farm.upstream.job(number, head, [attr], statusreport=job.statusreport))
        return job

    async def until_building(self, job: Job) -> None:
        """Wait until a gated job's build runs."""
        await self.tap.wait_for(lambda _: any(text == "begins" for text in self.lines(job)), what="the build")

    def open_gate(self, job: Job) -> None:
        """Let a gated job's build go on."""
        (self.place.directory / "gate" / str(job.number)).touch()

    async def died(self) -> None:
        """The daemon is dead, and of its point."""
        status = await self.daemon.wait(60)
        assert not self.place.point_file.exists(), f"it ended with {status} elsewhere:\n{self.daemon.last_words()}"
        assert status == -signal.SIGKILL

    async def die_at_start(self) -> None:
        """Start the daemon; it dies on the way."""
        self.daemon.launch()
        await self.died()

    def lines(self, job: Job) -> list[str]:
        """Outputs heard on LOG for a job, of all its attempts."""
        return [m.payload["output"] for m in self.on_log(job) if "line_number" in m.payload]

    def on_log(self, job: Job) -> list[Any]:
        """What came on LOG for a job. What the broker sent twice to the tap itself stands here once."""
        messages = self.tap.on("logs", f"lab/packages.{job.number}")
        return [message for message in messages if not message.redelivered]

    async def assert_one_result(self, job: Job) -> None:
        """Promises 1 and 2, as the peers, the broker, the journal and the host see them."""
        exchange = str(job.statusreport[0])
        await self.tap.wait_for(lambda _: bool(self.tap.on(exchange)), what="the result")
        await self.farm.until_settled()
        (body,) = {message.body for message in self.tap.on(exchange)}
        (result,) = {message.payload["attempt_id"]: message.payload for message in self.tap.on(exchange)}.values()
        assert (result["status"], result["pr"]["number"]) == ("Success", job.number)
        attempt = result["attempt_id"]
        await eventually("an outbox without results", lambda: not self.rows("outbox"))
        assert self.rows("running") == []
        self._check_log(job, attempt, body)
        ends = {
            entry.attempt_id: entry.status for entry in await self.daemon.client.history() if entry.pr == job.number
        }
        assert ends.pop(attempt) == "Success"
        assert set(ends.values()) <= {"Interrupted", "Requeued"}
        await self.assert_nothing_runs()

    def _check_log(self, job: Job, attempt: str, body: bytes) -> None:
        once = Counter(
            (message.payload["attempt_id"], "copy" if "tag" in message.payload else "start")
            for message in self.on_log(job)
            if "line_number" not in message.payload
        )
        assert set(once.values()) <= {1}
        assert {message.body for message in self.on_log(job) if "tag" in message.payload} <= {body}
        heard: dict[str, dict[int, str]] = defaultdict(dict)
        for message in self.on_log(job):
            line = message.payload
            if "line_number" in line:
                known = heard[line["attempt_id"]].setdefault(line["line_number"], line["output"])
                assert known == line["output"]
        lines = heard[attempt]
        written = (self.daemon.state_dir / "logs" / f"{attempt}.log").read_text().splitlines()
        assert lines == dict(enumerate(written, 1))
        assert written
        assert written[-10:] == json.loads(body)["output"]

    async def assert_nothing_runs(self) -> None:
        """No child of any of the daemons is left."""
        known = f"NIX_CONF_DIR={self.place.store.environment['NIX_CONF_DIR']}"
        await eventually("nobody left", lambda: not processes_with(known))

    async def assert_it_works(self) -> None:
        """A job goes its way, without any death."""
        await self.assert_one_result(await self.submit())

    def rows(self, table: str) -> list[Any]:
        """What the journal's database has in a table."""
        file = self.daemon.state_dir / "journal.sqlite3"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            return database.execute(f"SELECT * FROM {table}").fetchall()
