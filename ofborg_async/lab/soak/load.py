"""The demonstration's jobs in loops, each on a pull request that there was never before, and each checked."""

from __future__ import annotations

import logging

import anyio
from attrs import define, evolve, field

from ofborg_async.lab.commands import run
from ofborg_async.lab.demo import SYSTEM, Act, acts
from ofborg_async.lab.farm import Farm
from ofborg_async.lab.servers import LabError, base_environment
from ofborg_async.lab.upstream import package_set
from ofborg_async.lab.wiretap import RESULTS
from ofborg_async.waiting import within

log = logging.getLogger(__name__)

_ROUND_SECONDS = 180.0
_POLL_SECONDS = 0.05
_AHEAD = 3
"""So many jobs of a round may still be at work when the next round is asked for, so that no identity runs out."""
_COLLECT_ROUNDS = 10
_KEPT_ROUNDS = 2


@define(eq=False)
class Load:
    """Feeds ``farm`` until told to stop. ``done`` jobs are over; ``wrong`` says which had another end than expected."""

    farm: Farm
    done: int = 0
    rounds: int = 0
    wrong: list[str] = field(factory=list)
    _expected: dict[int, str] = field(factory=dict)
    _opened: list[list[int]] = field(factory=list)

    async def run_round(self) -> None:
        """Ask for one job of each kind; returns once but a few of them are over. Raises DeadlineExceededError."""
        round_acts = [_of_round(act, self.rounds) for act in acts()]
        first = 1 + self.rounds * len(round_acts)
        upstream = self.farm.upstream
        heads = [
            await upstream.open_pr(number, act.changes) if act.exists else "0" * 40
            for number, act in enumerate(round_acts, first)
        ]
        await upstream.advance_master({"doc/readme": f"from master {self.rounds}"})
        for number, (act, head) in enumerate(zip(round_acts, heads, strict=True), first):
            if act.expected is not None:
                self._expected[number] = act.expected
            await self.farm.submit(SYSTEM, upstream.job(number, head, act.attrs, subset=act.subset))
        self._opened.append([number for number, act in enumerate(round_acts, first) if act.exists])
        self.rounds += 1
        self.done += sum(act.expected is None for act in round_acts)
        await self._until_left(_AHEAD)
        await self._tidy()

    async def finish(self) -> None:
        """Wait for what is still at work. Raises DeadlineExceededError."""
        await self._until_left(0)
        await self.farm.until_settled()

    async def _until_left(self, count: int) -> None:
        with within(_ROUND_SECONDS, "the end of a round of jobs"):
            self._take_results()
            while len(self._expected) > count:
                await anyio.sleep(_POLL_SECONDS)
                self._take_results()

    def _take_results(self) -> None:
        """Check what came, and forget it: this process must not grow either."""
        came, self.farm.tap.messages[:] = list(self.farm.tap.messages), []
        for message in came:
            if message.exchange == RESULTS:
                result = message.payload
                number, status = result["pr"]["number"], result["status"]
                expected = self._expected.pop(number, None)
                self.done += expected is not None
                if status != expected:
                    self.wrong.append(f"pull request {number} is {status} and must be {expected}: {result['output']}")

    async def _tidy(self) -> None:
        """What others do beside a builder: old pull requests go, the store and the remote are collected."""
        while len(self._opened) > _KEPT_ROUNDS:
            old = self._opened.pop(0)
            await self._git(
                "update-ref", "--stdin", stdin="".join(f"delete refs/pull/{n}/head\n" for n in old).encode()
            )
        if self.rounds % _COLLECT_ROUNDS == 0:
            await self._git("gc", "--quiet", "--prune=now")
            try:
                await self.farm.store.nix("nix-store", "--gc")
            except LabError as error:
                log.warning("the store was not collected: %s", error)

    async def _git(self, *words: str, stdin: bytes | None = None) -> None:
        env = base_environment(HOME="/nonexistent", GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL="/dev/null")
        await run("git", *words, env=env, cwd=self.farm.upstream.path, stdin=stdin)


def _of_round(act: Act, number: int) -> Act:
    """The act with derivations that no other round has, so that all of them are built."""
    text = act.changes.get("default.nix", package_set()["default.nix"])
    release = package_set()["nixos/release.nix"]
    salt = f'args = [ "-c" script ]; salt = "{number}"'
    changes = {path: f"{content} {number}" for path, content in act.changes.items() if path != "default.nix"}
    changes["default.nix"] = text.replace('args = [ "-c" script ]', salt)
    changes["nixos/release.nix"] = release.replace("derivation {", f'derivation {{ salt = "{number}";')
    return evolve(act, changes=changes)
