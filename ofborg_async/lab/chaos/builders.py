"""The builders under test: a daemon of ours and its journal as the control API shows it, or processes of another."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio
from attrs import frozen

import ofborg_async
from ofborg_async.control.problems import AnsweredError, NoDaemonError
from ofborg_async.lab.farm import DaemonProcess
from ofborg_async.lab.servers import LabError, Server
from ofborg_async.model.status import HistoryEntry
from ofborg_async.waiting import at_most

_STOP_SECONDS = 60.0
_PAGE = 200
_POLL_SECONDS = 0.02


class Builder(Protocol):
    """One builder for some identities. It is launched, killed and stopped as a service manager would."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes that run, without their children."""
        ...

    @property
    def roots(self) -> tuple[Path, ...]:
        """The roots of its identities."""
        ...

    @property
    def mirrors(self) -> Path:
        """The directory of its shared repositories; it may not exist."""
        ...

    def launch(self) -> None:
        """Start what does not run."""
        ...

    def kill(self) -> None:
        """SIGKILL to its processes alone."""
        ...

    async def stop(self) -> list[int]:
        """SIGTERM and wait; the exit statuses."""
        ...

    def terminate(self) -> None:
        """SIGTERM without waiting."""
        ...

    async def restart_identity(self, choice: float) -> bool:
        """Start one of its identities anew, as its operator may; whether that was possible."""
        ...

    def died(self) -> str:
        """What was last said by a process that ended by itself since it was launched; "" when none did."""
        ...

    async def settled(self) -> bool:
        """Whether nothing runs and nothing waits to be sent, as far as it tells."""
        ...

    async def history(self) -> list[HistoryEntry] | None:
        """Every attempt that ended, as it remembers them; None when it does not."""
        ...

    async def held_locks(self) -> list[str]:
        """Locks that somebody holds, as it tells."""
        ...

    def close(self) -> None:
        """Kill it with all that descends from it."""
        ...


class Ours:
    """A daemon of this package in ``directory``."""

    def __init__(
        self,
        directory: Path,
        file: Path,
        roots: Sequence[Path],
        state: Path,
        environment: Mapping[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        self.roots = tuple(roots)
        self.mirrors = state / "mirrors"
        # The package that this campaign is of, wherever a prefix leaves the working directory.
        environment = {**environment, "PYTHONPATH": str(Path(ofborg_async.__file__).parents[1])}
        self.process = DaemonProcess(directory, [file], environment=environment, prefix=prefix)
        self._wanted = False

    @property
    def pids(self) -> tuple[int, ...]:
        """The daemon, if it runs."""
        return (self.process.pid,) if self.process.running else ()

    def launch(self) -> None:
        """Start it."""
        if not self.process.running:
            self.process.launch()
        self._wanted = True

    def kill(self) -> None:
        """SIGKILL to the daemon alone."""
        self._wanted = False
        with suppress(ProcessLookupError, LabError):
            self.process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        self._wanted = False
        with suppress(ProcessLookupError, LabError):
            self.process.signal(signal.SIGTERM)

    async def stop(self) -> list[int]:
        """SIGTERM; its exit status. Before it says that it runs the signal may end it as any program: 0 too."""
        pid = self.process.pid
        self.terminate()
        status = await self.process.wait(_STOP_SECONDS)
        early = f"identities as process {pid}" not in self.process.log.read_text()
        return [0 if early and status == -signal.SIGTERM else status]

    async def restart_identity(self, choice: float) -> bool:
        """By the control API."""
        with suppress(NoDaemonError, AnsweredError):
            await self.process.client.restart(self.roots[int(choice * len(self.roots))].name)
            return True
        return False

    def died(self) -> str:
        """Its last words if it has exited unasked."""
        if not self._wanted or self.process.running:
            return ""
        return self.process.last_words()[-600:] or "no word"

    async def settled(self) -> bool:
        """No job in hand, no result on its way."""
        with suppress(NoDaemonError, AnsweredError):
            identities = (await self.process.status()).identities
            return all(
                identity.results_waiting == 0 and all(system.job is None for system in identity.systems)
                for identity in identities
            )
        return False

    async def history(self) -> list[HistoryEntry] | None:
        """All of it."""
        found: list[HistoryEntry] = []
        while page := await self.process.client.history(limit=_PAGE, before=found[-1].attempt_id if found else None):
            found += page
        return found

    async def held_locks(self) -> list[str]:
        """What is held of trees, clones and mirrors; a daemon holds the locks of its roots as long as it runs."""
        locks = await self.process.client.locks()
        return [f"{lock.kind} {lock.path or lock.key}" for lock in locks if lock.holder is not None and lock.job]

    def close(self) -> None:
        """Kill it and its descendants."""
        self._wanted = False
        self.process.close()


@frozen
class Theirs:
    """Another builder: one process for each identity, started anew when it ends, as a service manager would."""

    servers: tuple[Server, ...]
    roots: tuple[Path, ...]
    mirrors: Path

    @property
    def pids(self) -> tuple[int, ...]:
        """Those that run."""
        return tuple(server.pid for server in self.servers if server.running)

    def launch(self) -> None:
        """Start those that do not run."""
        for server in self.servers:
            if not server.running:
                server.start()

    def kill(self) -> None:
        """SIGKILL to each process alone."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM to each process alone."""
        self._signal(signal.SIGTERM)

    async def stop(self) -> list[int]:
        """SIGTERM and wait. How they exit is their own matter: [0]."""
        self.terminate()
        with at_most(_STOP_SECONDS):
            while self.pids:
                await anyio.sleep(_POLL_SECONDS)
        return [0]

    async def restart_identity(self, choice: float) -> bool:
        """Each is a process: as a service manager would."""
        server = self.servers[int(choice * len(self.servers))]
        await server.terminate(_STOP_SECONDS)
        server.start()
        return True

    def died(self) -> str:
        """Start again what has ended."""
        self.launch()
        return ""

    async def settled(self) -> bool:
        """It does not tell."""
        return True

    async def history(self) -> list[HistoryEntry] | None:
        """It remembers none."""
        return None

    async def held_locks(self) -> list[str]:
        """It does not tell."""
        return []

    def close(self) -> None:
        """Kill them and their descendants."""
        for server in self.servers:
            server.kill()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
