"""A host of one's own with an account that the machine does not have: a mount namespace, Linux, root only.

It is the machine, but for ``/nix`` and ``/etc`` (``namespace``), the account, and what is laid over its directories.
Nothing is made on the machine itself.
"""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from ofborg_async.lab.commands import run
from ofborg_async.lab.namespace import namespaces_work
from ofborg_async.lab.servers import base_environment

UID = 399
"""The account's number, and its group's."""

_PROJECT = Path(__file__).parents[2]


def hosts_work() -> bool:
    """Whether this user can have one here."""
    return namespaces_work() and "overlay" in Path("/proc/filesystems").read_text("ascii")


@frozen
class Account:
    """A user. ``mounts``: directories of the host and where they lie here; they belong to the user."""

    user: str
    group: str
    home: str
    mounts: Mapping[str, Path]


@frozen
class Host:
    """Such a host. ``prefix`` leads into its namespaces, ``files`` are the account's, by their paths on the host."""

    directory: Path
    prefix: tuple[str, ...]
    account: Account
    files: Mapping[str, Path] = field(factory=dict)

    async def lay_out(self, programs: Mapping[str, str]) -> None:
        """Make what the host shows: ``programs`` (scripts by path), ``ofborg-async`` in /usr/local/bin, the mounts."""
        added = self._added
        for path, text in programs.items():
            file = added / path.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755)
        command = added / "usr/local/bin/ofborg-async"
        command.parent.mkdir(parents=True, exist_ok=True)
        command.symlink_to(Path(sys.executable).with_name("ofborg-async"))
        for there, here in self.account.mounts.items():
            (added / there.removeprefix("/")).mkdir(parents=True)
            here.mkdir(mode=0o700, exist_ok=True)
            os.chown(here, UID, UID)
        for closed in _closed_ancestors():
            (added / closed.relative_to("/")).mkdir(parents=True, exist_ok=True)
        (added / "bin").mkdir(exist_ok=True)
        await run("chmod", "-R", "a+rX", str(added), env=base_environment())

    def words(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        setup: Sequence[str] = (),
        cwd: str = "/",
        environment: Sequence[str] = (),
    ) -> list[str]:
        """Words that run ``argv`` on the host with nothing but ``environment``; ``setup`` are lines of shell."""
        account = self.account
        script = "\n".join(
            [
                "set -e",
                f"echo {account.user}:x:{UID}:{UID}::{account.home}:/bin/false >> /etc/passwd",
                f"echo {account.group}:x:{UID}: >> /etc/group",
                *(
                    f"install -D -m 0600 -o {UID} -g {UID} {shlex.quote(str(here))} {there}"
                    for there, here in self.files.items()
                ),
                *(self._merge(place) for place in self._merged()),
                *(f"mkdir -p {there}; mount --bind {here} {there}" for there, here in account.mounts.items()),
                *setup,
                # The words of the environment are left to the shell, for $$.
                f'exec {shlex.join(self.become(user))} env -i -C {cwd} {" ".join(environment)} "$@"',
            ]
        )
        return [*self.prefix, "sh", "-c", script, "sh", *argv]

    def become(self, user: str | None) -> list[str]:
        """Words before a command that make it ``user``'s; root's for None."""
        if user is None:
            return []
        group = self.account.group if user == self.account.user else str(pwd.getpwnam(user).pw_gid)
        return ["setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups", "--no-new-privs", "--"]

    @property
    def _added(self) -> Path:
        return self.directory / "added"

    def _merge(self, place: Path) -> str:
        added = self._added / place.relative_to("/")
        return f"mount -t overlay overlay -o lowerdir={shlex.quote(f'{added}:{place}')} {shlex.quote(str(place))}"

    def _merged(self) -> list[Path]:
        """Directories of the machine that show something more on the host."""
        places = [Path("/bin"), Path("/usr/local/bin"), *(Path(there).parent for there in self.account.mounts)]
        for closed in _closed_ancestors():
            if not any(closed.is_relative_to(place) for place in places):
                places.append(closed)
        # The root is the host's own, so it needs nothing laid over it.
        return [place for place in dict.fromkeys(places) if place.exists() and place != Path("/")]


def _closed_ancestors() -> list[Path]:
    """Directories above this Python and this package that another user may not enter; outermost first."""
    ends = {Path(sys.executable), Path(sys.executable).resolve(), Path(sys.base_prefix), _PROJECT}
    above = {parent for end in ends for parent in end.parents}
    return sorted(parent for parent in above if not parent.stat().st_mode & 0o001)
