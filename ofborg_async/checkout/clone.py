"""The bare ``clone`` of a root: of no use to us, kept so that the original builder can be put back.

The original takes any directory there for a finished clone, fetches into it, and lets new work trees borrow from it.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from ofborg_async.checkout import disk
from ofborg_async.checkout.git import BoundGit, text_of
from ofborg_async.checkout.layout import Layout
from ofborg_async.process import Completed


@frozen
class RootClone:
    """The clone of ``layout``, whose ``clone.lock`` the caller and ``git`` hold."""

    git: BoundGit
    layout: Layout
    url: str
    borrowed: Path

    async def ensure(self, branch: str, base: str) -> None:
        """Make it if there is none or only half of one (D04), and point it at the URL. Raises HostFault.

        One that the original made is left as it is otherwise: it can then stand without our mirror.
        """
        clone = self.layout.clone
        await disk.discard_leftovers(clone)
        if clone.exists() and await self._is_whole():
            asked = await self._run(clone, "config", "--get", "remote.origin.url", expected=(0, 1))
            if text_of(asked) != self.url:
                await self._run(clone, "config", "--replace-all", "remote.origin.url", self.url)
            return
        await disk.discard(clone)
        new = disk.fresh_sibling(clone)
        await self._run(None, "init", "--quiet", "--bare", "--template=", str(new))
        disk.write_lines(new / "objects" / "info" / "alternates", [str(self.borrowed)])
        await self._run(new, "config", "remote.origin.url", self.url)
        await self._run(new, "update-ref", f"refs/heads/{branch}", base)
        await self._run(new, "symbolic-ref", "HEAD", f"refs/heads/{branch}")
        with disk.translated("the bare clone cannot be made"):
            new.rename(clone)

    async def _is_whole(self) -> bool:
        words = ("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        return (await self._run(self.layout.clone, *words, expected=(0, 1, 128))).returncode == 0

    async def _run(self, repository: Path | None, *words: str, expected: tuple[int, ...] = (0,)) -> Completed:
        return await self.git.run(repository, *words, what="the root's bare clone", expected=expected)
