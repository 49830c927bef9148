"""One job to one outcome, by playbook: what each room answers, and what becomes of the job."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import define, evolve, field
from fakes import JOB, FakeClock, FakeLogFile, FakeNix, FakeWorkspace

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.model.checkout import Gone, MergeConflict, Ready, Refused
from ofborg_async.model.evaluation import Evaluation, SkippedAttr
from ofborg_async.model.job import BuildJob
from ofborg_async.model.result import BuildStatus, UnexpectedError
from ofborg_async.model.status import Phase
from ofborg_async.pipeline.attempt import Attempt, RetryPolicy
from ofborg_async.pipeline.outcome import MERGE_FAILED, HostTrouble, Outcome, Report, Silent
from ofborg_async.pipeline.progress import Progress
from ofborg_async.pipeline.transcript import Transcript
from ofborg_async.supervisor.budget import HostBudget

FAULT = HostFault(FaultKind.NETWORK, "no route to host")


@define
class Stage:
    workspace: FakeWorkspace = field(factory=FakeWorkspace)
    nix: FakeNix = field(factory=FakeNix)
    log: FakeLogFile = field(factory=FakeLogFile)
    clock: FakeClock = field(factory=FakeClock)
    job: BuildJob = JOB
    hide: bytes = b""

    async def play(self) -> tuple[Outcome, Transcript, Progress]:
        progress = Progress(self.job, "a1", self.clock, limit_seconds=1.0, on_phase=lambda _: None)
        transcript = Transcript(self.log, progress, hide=self.hide)
        attempt = Attempt(
            identity="i",
            weight=1,
            system="x86_64-linux",
            job=self.job,
            attempt_id="a1",
            workspace=self.workspace,
            nix=self.nix,
            evaluations=HostBudget("evaluations", 1),
            transcript=transcript,
            progress=progress,
            retry=RetryPolicy(2, 1.0),
            clock=self.clock,
        )
        return await attempt.run(), transcript, progress


async def test_success_carries_the_tail_of_the_log() -> None:
    stage = Stage(nix=FakeNix(lines=[b"%d" % n for n in range(12)]))
    outcome, transcript, progress = await stage.play()
    assert outcome == Report(BuildStatus.SUCCESS, ("good", "bad"), (), tuple(str(n) for n in range(2, 12)))
    assert transcript.start is not None
    assert (progress.lines, progress.phase) == (12, Phase.BUILD)
    assert not stage.workspace.held


async def test_no_attributes_says_nothing() -> None:
    outcome, transcript, _ = await Stage(job=evolve(JOB, attrs=())).play()
    assert isinstance(outcome, Silent)
    assert transcript.start is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Gone("no ref"), Silent("no ref")),
        (MergeConflict("x"), MERGE_FAILED),
        (Refused("bad url"), Report(UnexpectedError("bad url"), ("good", "bad"), ())),
    ],
)
async def test_what_checkout_says(answer: Gone | MergeConflict | Refused, expected: Outcome) -> None:
    stage = Stage(workspace=FakeWorkspace([answer]))
    outcome, transcript, _ = await stage.play()
    assert outcome == expected
    assert transcript.start is None
    assert stage.nix.builds == 0


async def test_skipped_attrs_are_explained_and_the_rest_is_built() -> None:
    nix = FakeNix(Evaluation(("good",), (SkippedAttr("bad", (b"error: broken",)),), ()))
    stage = Stage(nix=nix)
    outcome, transcript, _ = await stage.play()
    assert isinstance(outcome, Report)
    assert (outcome.attempted, outcome.skipped) == (("good",), ("bad",))
    assert stage.log.lines == [b"Cannot nix-instantiate `bad` because:", b"error: broken", b"", b"building"]
    assert transcript.start is not None
    assert transcript.start.skipped_attrs == ("bad",)


async def test_nothing_to_build_is_skipped() -> None:
    nix = FakeNix(Evaluation((), (SkippedAttr("good", ()), SkippedAttr("bad", ())), ()))
    outcome, transcript, _ = await Stage(nix=nix).play()
    assert isinstance(outcome, Report)
    assert (outcome.status, outcome.attempted, outcome.skipped) == (BuildStatus.SKIPPED, None, ("good", "bad"))
    assert transcript.start is not None
    assert transcript.start.attempted_attrs == ()
    assert nix.builds == 0


async def test_a_fault_of_the_host_is_retried_in_place() -> None:
    stage = Stage(workspace=FakeWorkspace([FAULT, FAULT, Ready(Path("/tree"), "c")]))
    outcome, _, _ = await stage.play()
    assert isinstance(outcome, Report)
    assert stage.clock.slept == [1.0, 2.0]


async def test_then_it_is_the_hosts_trouble_and_never_a_failure() -> None:
    stage = Stage(workspace=FakeWorkspace([FAULT]))
    outcome, transcript, _ = await stage.play()
    assert outcome == HostTrouble(FAULT, Phase.FETCH)
    assert stage.workspace.calls == 3
    assert transcript.start is None


async def test_a_build_ended_by_the_host_says_so_in_its_log_and_begins_again() -> None:
    stage = Stage(nix=FakeNix(statuses=[HostFault(FaultKind.MEMORY, "killed"), BuildStatus.SUCCESS]))
    outcome, _, _ = await stage.play()
    assert isinstance(outcome, Report)
    assert outcome.status is BuildStatus.SUCCESS
    assert stage.log.lines == [b"building", b"[ofborg-async: this host failed (memory); building again]", b"building"]


async def test_the_root_can_be_hidden_from_the_log() -> None:
    stage = Stage(nix=FakeNix(lines=[b"at /var/lib/x/repo/y"]), hide=b"/var/lib/x")
    outcome, _, _ = await stage.play()
    assert isinstance(outcome, Report)
    assert outcome.output == ("at <checkout>/repo/y",)
