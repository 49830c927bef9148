"""A private nix store with real /nix/store names, and plain directories that stand for work trees."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import anyio
from attrs import define, field, frozen

from ofborg_async.clock import SystemClock
from ofborg_async.model.evaluation import EvalRequest
from ofborg_async.model.identity import LimitSettings, NixSettings
from ofborg_async.model.job import Subset
from ofborg_async.nix import HostEvidence, NixEngine
from ofborg_async.process import ProcessRecord, Spawner

T = TypeVar("T")

SYSTEM = "x86_64-linux"
NAP = f"sleep 8{os.getpid():07d}"
"""A builder's long sleep, which nobody else on this host does."""
CONFIGURATION = """\
sandbox = true
sandbox-paths = /bin/sh=/usr/bin/busybox
substituters =
build-users-group =
"""
MAKE = 'mk = name: script: derivation { inherit name system; builder = "/bin/sh"; args = [ "-c" script ]; };'
SUM = "sum = n: builtins.foldl' (a: b: a + b) n (builtins.genList (i: i) 2000000);"


def package_set(attributes: str, arguments: str = "{ system, supportedSystems ? [ ], ... }:") -> str:
    """A default.nix with ``mk name script`` and ``sum n``, which takes a while, in scope."""
    return f"{arguments}\nlet {MAKE} {SUM}\nin {{\n{attributes}\n}}\n"


@define
class Lines:
    """A sink that remembers."""

    lines: list[bytes] = field(factory=list)

    def write(self, lines: Sequence[bytes]) -> None:
        self.lines += lines

    @property
    def text(self) -> str:
        return b"\n".join(self.lines).decode(errors="replace")


@define
class Registry:
    """Remembers every process that was started, to count them and to see them gone."""

    records: list[ProcessRecord] = field(factory=list)
    running: set[int] = field(factory=set)

    def started(self, attempt_id: str, pid: int, start_time: str, argv0: str) -> None:
        self.records.append(ProcessRecord(attempt_id, pid, start_time, argv0))
        self.running.add(pid)

    def ended(self, pid: int) -> None:
        self.running.discard(pid)

    @property
    def programs(self) -> list[str]:
        """What was started, without the process room's own look at setpriv."""
        return [record.argv0 for record in self.records if not record.argv0.endswith("setpriv")]


class NixLab:
    """One store below ``folder``. ``configuration`` is added to its nix.conf."""

    def __init__(self, folder: Path, configuration: str = "", remote: str | None = None) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.roots = folder / "gcroots"
        self.registry = Registry()
        self.remote = f"local?root={self.store}" if remote is None else remote
        (folder / "conf").mkdir(parents=True)
        (folder / "tmp").mkdir()
        (folder / "conf" / "nix.conf").write_text(CONFIGURATION + configuration)
        self._trees = 0
        if remote is None:
            self.nix("nix-store", "--init")  # two processes that make the same store at once can trip over each other

    @property
    def environment(self) -> dict[str, str]:
        # A nix that is killed leaves its temporary directories behind: not outside of ours.
        return {"NIX_CONF_DIR": str(self.folder / "conf"), "TMPDIR": str(self.folder / "tmp")}

    def settings(self, **changes: object) -> NixSettings:
        values = {"systems": (SYSTEM,), "remote": self.remote, "environment": self.environment} | changes
        return NixSettings(**values)  # type: ignore[arg-type]

    def engine(
        self,
        settings: NixSettings | None = None,
        *,
        parallel: int = 2,
        path: str | None = None,
        limits: LimitSettings | None = None,
        evidence: HostEvidence | None = None,
    ) -> NixEngine:
        return NixEngine(
            settings or self.settings(),
            limits or LimitSettings(disk_floor_bytes=0, disk_floor_inodes=0),
            spawner=Spawner(SystemClock(), self.registry),
            clock=SystemClock(),
            roots=self.roots,
            path=path or os.environ["PATH"],
            parallel=lambda: parallel,
            evidence=evidence,
        )

    def tree(self, files: Mapping[str, str]) -> Path:
        """A new work tree with these files."""
        self._trees += 1
        tree = (self.folder / "trees" / str(self._trees)).resolve()
        write_files(tree, files)
        return tree

    def request(
        self, tree: Path, *attrs: str, subset: Subset | None = Subset.NIXPKGS, system: str = SYSTEM
    ) -> EvalRequest:
        return EvalRequest(tree, subset, attrs, system, str(uuid.uuid4()), ())

    def nix(self, *words: str, tree: Path | None = None) -> tuple[int, list[str]]:
        """Run a nix command by hand in the original's environment: its exit status and the lines of both streams."""
        environment = {
            "HOME": "/homeless-shelter",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PATH": os.environ["PATH"],
            "NIX_REMOTE": self.remote,
            "NIX_PATH": f"ofborg-nixpkgs-pr={tree}",
        }
        done = subprocess.run(
            words,
            env=environment | self.environment,
            cwd=tree or self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=120,
        )
        text = done.stdout.decode(errors="replace")
        return done.returncode, text.removesuffix("\n").split("\n") if text else []

    def original_instantiate(self, tree: Path, attr: str, subset: Subset | None = None) -> tuple[int, list[str]]:
        """nix-instantiate for one attr as the original runs it (wire document)."""
        return self.nix("nix-instantiate", *original_arguments(subset), "-A", attr, tree=tree)

    def original_build(self, tree: Path, *attrs: str, subset: Subset | None = None) -> tuple[int, list[str]]:
        """nix-build for all attrs as the original runs it (wire document)."""
        selections = [word for attr in attrs for word in ("-A", attr)]
        words = ("nix-build", "--no-out-link", "--keep-going", *original_arguments(subset), *selections)
        return self.nix(*words, tree=tree)


class NixDaemon(NixLab):
    """A store that is used through a nix-daemon: ``remote`` is its socket."""

    def __init__(self, folder: Path, configuration: str = "") -> None:
        super().__init__(folder, configuration)
        # The path of a socket has to be short.
        self._socket_dir = Path(tempfile.mkdtemp(prefix="nix-"))
        self._socket_dir.chmod(0o755)
        socket = self._socket_dir / "socket"
        environment = self.environment | {
            "PATH": os.environ["PATH"],
            "NIX_REMOTE": self.remote,
            "NIX_DAEMON_SOCKET_PATH": str(socket),
        }
        self.process = subprocess.Popen(
            ["nix-daemon"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 30
        while not socket.exists():
            assert time.monotonic() < deadline, "nix-daemon does not listen"
            time.sleep(0.02)
        self.remote = f"unix://{socket}?root={self.store}"

    def kill_all(self) -> None:
        """SIGKILL to the daemon and to every process that serves a connection."""
        for pid in processes_with("nix-daemon"):
            with suppress(ProcessLookupError):  # one that served an ended connection may go while it is looked at
                if os.getsid(pid) == self.process.pid or pid in self._children():
                    os.kill(pid, signal.SIGKILL)

    def _children(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self._socket_dir)


def original_arguments(subset: Subset | None) -> list[str]:
    nixpkgs = '{ outPath=./.; revCount=999999; shortRev="ofborg"; rev="0000000000000000000000000000000000000000"; }'
    return [
        *("--option", "extra-experimental-features", "no-url-literals", "--show-trace"),
        *("--option", "restrict-eval", "true", "--option", "build-timeout", "3600"),
        *("--argstr", "system", SYSTEM, "--arg", "supportedSystems", f'["{SYSTEM}"]'),
        *(("--arg", "nixpkgs", nixpkgs) if subset is Subset.NIXOS else ()),
        "./nixos/release.nix" if subset is Subset.NIXOS else "./default.nix",
    ]


def write_files(tree: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)


def processes_with(text: str) -> list[int]:
    """Processes of this host whose command line has ``text``, inside sandboxes too."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if text.encode() in command:
                found.append(int(entry.name))
    return found


async def until(what: str, condition: Callable[[], T | None], seconds: float = 30.0) -> T:
    """Poll until ``condition`` gives something, and return that."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        await anyio.sleep(0.02)
    return value


def first_builders() -> list[int]:
    """The first process of each sandbox in which somebody takes a NAP."""
    parents = {}
    for pid in processes_with(NAP):
        with suppress(OSError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parent not in parents]


class meanwhile:  # noqa: N801 - reads like a statement
    """Wait beside the body for processes that ``condition`` names, and do ``deed`` with them; again for new ones."""

    def __init__(self, condition: Callable[[], list[int]], deed: Callable[[list[int]], object], times: int = 1) -> None:
        self._condition, self._deed, self._times = condition, deed, times
        self._group = anyio.create_task_group()

    async def _run(self) -> None:
        before: set[int] = set()
        for _ in range(self._times):
            pids = await until("the process", lambda: [pid for pid in self._condition() if pid not in before] or None)
            before.update(processes_with(NAP))  # children too: they may outlive their parent by a moment
            self._deed(pids)

    async def __aenter__(self) -> None:
        await self._group.__aenter__()
        self._group.start_soon(self._run)

    async def __aexit__(self, *exception: object) -> bool | None:
        try:
            return await self._group.__aexit__(*exception)  # type: ignore[arg-type]
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # the first of a sandbox takes the others along
            os.kill(pid, number)


@frozen
class KernelKills(HostEvidence):
    """A kernel that kills while each build runs."""

    asked: list[None] = field(factory=list)

    def oom_kills(self) -> int:
        self.asked.append(None)
        return len(self.asked)
