"""Runs git so that nothing but its arguments decides what it does, and reads its failures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from attrs import frozen

from ofborg_async.checkout.words import Reading, read_failure
from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.process import Command, Completed, Spawner

_NOTHING: Mapping[str, str] = MappingProxyType({})

# What of the service's own environment a transport needs: proxies, certificates, the agent with the ssh keys.
_PASSED_ON = (
    "PATH",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "SSH_AUTH_SOCK",
)

# Configuration from the environment outranks every file, that of a repository made by others too (git-config(1)).
#
# transfer.fsckObjects stays off: a single malformed commit somewhere in a repository's history would make every fetch
# of it fail, as a fault of this host. What it guards against cannot happen here: paths that leave the tree are refused
# at checkout whatever is set, core.protectHFS and core.protectNTFS extend that to the names other file systems fold,
# and submodules, hooks and filters are never run.
_CONFIGURATION = (
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    # Few objects stay loose, many become a pack: both costs 5 ms, and each pack slows every later command.
    ("fetch.unpackLimit", "100"),
    ("fetch.fsckObjects", "false"),
    ("fetch.writeCommitGraph", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("submodule.recurse", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.untrackedCache", "false"),
    ("core.sparseCheckout", "false"),
    ("core.autocrlf", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.logAllRefUpdates", "false"),
    ("core.protectHFS", "true"),
    ("core.protectNTFS", "true"),
    ("core.quotePath", "true"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    ("commit.gpgSign", "false"),
    ("merge.renormalize", "false"),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
    ("advice.detachedHead", "false"),
)

_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4"


class GitFault(HostFault):
    """A git command failed. ``what`` it was for, its ``returncode``, and what its words mean in ``reading``."""

    def __init__(self, what: str, returncode: int, reading: Reading) -> None:
        self.what = what
        self.returncode = returncode
        self.reading = reading
        super().__init__(
            reading.kind, f"{what} failed: {reading.words or f'exit code {returncode}'}", remedy=reading.remedy
        )


class Git:
    """git for one identity: its name in commits, the transports it may use.

    ``environment`` is the daemon's; only what transports need of it is passed on. Nothing is read from the machine's or
    the user's configuration, and nothing asks a question.
    """

    def __init__(
        self,
        spawner: Spawner,
        environment: Mapping[str, str],
        *,
        author_name: str,
        author_email: str,
        schemes: Collection[str],
    ) -> None:
        self._spawner = spawner
        self.author = (author_name, author_email)
        """Who makes merges."""
        self._environment = {
            **{name: environment[name] for name in _PASSED_ON if name in environment},
            "HOME": "/homeless-shelter",
            "LC_ALL": "C",
            "EMAIL": author_email,
            "GIT_AUTHOR_NAME": author_name,
            "GIT_AUTHOR_EMAIL": author_email,
            "GIT_COMMITTER_NAME": author_name,
            "GIT_COMMITTER_EMAIL": author_email,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_DEFAULT_HASH": "sha1",
            "GIT_DEFAULT_REF_FORMAT": "files",
            "GIT_SSH_COMMAND": _SSH,
            "GIT_ALLOW_PROTOCOL": ":".join(sorted(schemes)),
            **_as_environment(_CONFIGURATION),
        }

    def within(self, deadline_seconds: float, *, attempt_id: str, descriptors: tuple[int, ...] = ()) -> BoundGit:
        """For one attempt: each command gets ``deadline_seconds``, and holds ``descriptors``, lock files, too."""
        return BoundGit(self._spawner, self._environment, deadline_seconds, attempt_id, descriptors)


@frozen
class BoundGit:
    """Runs git for one attempt; ``Git.within`` makes it."""

    spawner: Spawner
    environment: Mapping[str, str]
    deadline_seconds: float
    attempt_id: str
    descriptors: tuple[int, ...]

    async def run(
        self,
        repository: Path | None,
        *words: str,
        what: str,
        work_tree: Path | None = None,
        environment: Mapping[str, str] = _NOTHING,
        stdin: bytes | None = None,
        expected: Sequence[int] = (0,),
        limit_bytes: int = 1 << 20,
        fault_of_deadline: FaultKind = FaultKind.OTHER,
    ) -> Completed:
        """Run ``git WORDS`` on the repository directory ``repository`` (``.git`` or bare), None for none.

        It is named outright, so that git looks for none and asks nobody who owns it. Raises GitFault for an exit code
        that is not ``expected``, HostFault when the deadline is over (``fault_of_deadline`` says of which kind) or git
        cannot be run.
        """
        place = () if repository is None else (f"--git-dir={repository}",)
        tree = () if work_tree is None else (f"--work-tree={work_tree}",)
        command = Command(
            argv=("git", *place, *tree, *words),
            env={**self.environment, **environment},
            cwd=work_tree or Path("/"),
            descriptors=self.descriptors,
            stdin=stdin,
        )
        done = await self.spawner.capture(
            command,
            deadline_seconds=self.deadline_seconds,
            what=f"git {words[0]} ({what})",
            limit_bytes=limit_bytes,
            attempt_id=self.attempt_id,
        )
        if done.timed_out:
            raise HostFault(fault_of_deadline, f"{what}: git {words[0]} took longer than {self.deadline_seconds:g} s")
        if done.returncode not in expected:
            raise GitFault(what, done.returncode, read_failure(done.stderr, done.returncode))
        return done


def text_of(done: Completed) -> str:
    """The output of a command that prints one line."""
    return done.stdout.decode(errors="surrogateescape").strip()


def _as_environment(configuration: Sequence[tuple[str, str]]) -> dict[str, str]:
    found = {"GIT_CONFIG_COUNT": str(len(configuration))}
    for number, (key, value) in enumerate(configuration):
        found[f"GIT_CONFIG_KEY_{number}"] = key
        found[f"GIT_CONFIG_VALUE_{number}"] = value
    return found
