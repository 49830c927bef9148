"""The journal: what must survive the daemon. schema.py has its tables; writer.py makes calls durable."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from ofborg_async.clock import Clock
from ofborg_async.crashpoints import Step, around
from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.journal import attempts, history, holds, outbox
from ofborg_async.journal.agetime import AgeClock
from ofborg_async.journal.attempts import Ending
from ofborg_async.journal.opening import FREE_SPACE, cannot_open
from ofborg_async.journal.processlog import ProcessLog
from ofborg_async.journal.records import (
    Attempt,
    Counters,
    DuplicateAttemptError,
    Hold,
    Interrupted,
    JobKey,
    LeftProcess,
    OutboxEntry,
    OutboxResult,
    Seen,
)
from ofborg_async.journal.writer import Writer, WriterStatistics
from ofborg_async.model.status import HistoryEntry, Phase

PROCESSES = "processes.log"
DAY_SECONDS = 24 * 3600.0

UNKNOWN: Mapping[str, float] = MappingProxyType({})
"""Durations of an attempt of which none are known."""


class Journal:
    """Attempts, outbox, remembered deliveries, history, holds, processes: ``journal.sqlite3`` and files beside it.

    Make it with ``open``. Every ``async`` call returns once what it did is durable, and is not cancellable in between
    (writer.py). Each of them may raise HostFault (DISK) when it could not be written, and JournalUnusableError when the
    file turns out damaged; further errors are named where they belong. Methods that are not ``async`` are for the event
    loop's thread and never wait.

    An ordinary attempt takes five transactions: ``begin``, ``mark_log_started``, ``finish``, ``confirm_and_mark``,
    ``acked``; phases, confirmed lines and ``log_done`` join the next one. All survive the death of the daemon. Only
    ``finish`` and ``confirm_and_mark`` wait for the disk, so that no published result is forgotten in a power cut. The
    other three would cost a small job a good part of its time, and what a power cut can take back of them (at most what
    came since the last ``flush``) is harmless: without ``begin`` the message is built under a new attempt id, where
    ``mark_log_started`` did not survive no later commit did, and without ``acked`` the delivery counts as not known to
    be acknowledged.
    """

    def __init__(self, writer: Writer, ages: AgeClock, processes: ProcessLog, expiry_seconds: float) -> None:
        self._writer = writer
        self._ages = ages
        self._processes = processes
        self._expiry_ms = round(expiry_seconds * 1000)

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        clock: Clock,
        expiry_seconds: float = DAY_SECONDS,
        reserve_bytes: int = 4 * 1024 * 1024,
        call_seconds: float = 60.0,
    ) -> Journal:
        """Open the journal in ``directory`` (made when missing), create or migrate it.

        Deliveries are remembered for ``expiry_seconds`` after they were last seen. ``call_seconds`` is the deadline of
        each call. Raises JournalUnusableError (exit 78, with its remedy), HostFault (DISK, LOCK).
        """
        try:
            processes = ProcessLog(directory / PROCESSES)  # small and once, before anything else runs
        except OSError as error:
            raise cannot_open(error, directory / PROCESSES) from error
        async with AsyncExitStack() as undo:
            undo.callback(processes.close)
            writer = await Writer.open(directory, reserve_bytes=reserve_bytes, call_seconds=call_seconds)
            undo.push_async_callback(writer.close)
            last = await writer.read(attempts.last_moment)
            undo.pop_all()
        return cls(writer, AgeClock(clock, last), processes, expiry_seconds)

    async def close(self) -> None:
        """Write what waits and close the files."""
        await self._writer.close()
        self._processes.close()

    @property
    def disk_full(self) -> bool:
        """True once the disk was full, until there is room for the reserve again."""
        return self._writer.disk_full

    @property
    def statistics(self) -> WriterStatistics:
        """How many transactions were committed since ``open``, and for how many calls."""
        return self._writer.statistics

    async def flush(self) -> None:
        """Write what waits for the next transaction and bring it all to the disk. To be called every second.

        Raises no HostFault: what cannot be written now goes on waiting (``disk_full``).
        """
        await self._writer.flush()

    # --- attempts -----------------------------------------------------------------------------------------------------

    async def lookup(self, key: JobKey) -> Seen | None:
        """What is known of a job; None for one never seen, acknowledged since, or expired."""
        moment = self._ages.moment()
        seen, expired = await self._writer.read(lambda db: attempts.lookup(db, key, moment, self._expiry_ms))
        if expired:  # once seen as expired it must not come back after a restart with the clock set back
            await self._writer.write(
                Step.JOURNAL_EXPIRED, lambda db: attempts.forget_expired(db, moment, self._expiry_ms)
            )
        return seen

    async def begin(self, attempt: Attempt) -> None:
        """Record an attempt before anything of it starts.

        Raises DuplicateAttemptError: an attempt at the same job runs, or has finished without a known ack. After
        HostFault it does not run: where that is not known (a deadline), it is taken back with the next transaction, so
        another try takes another attempt id.
        """
        moment = self._ages.moment()
        try:
            await self._writer.write(
                Step.JOURNAL_BEGIN, lambda db: attempts.begin(db, attempt, moment, self._expiry_ms), synced=False
            )
        except DuplicateAttemptError as error:
            going_back = (Step.JOURNAL_REQUEUED, Step.JOURNAL_TAKE_BACK)
            if not any(self._writer.waits(step, error.seen.attempt_id) for step in going_back):
                raise
            detail = f"that attempt {error.seen.attempt_id} went back is not written yet"
            raise HostFault(FaultKind.DISK, detail, remedy=FREE_SPACE) from error
        except HostFault as error:
            ending = attempts.requeue_ending(error.detail, UNKNOWN)
            self._writer.later(
                Step.JOURNAL_TAKE_BACK,
                attempt.attempt_id,
                lambda db: attempts.take_back(db, attempt.attempt_id, ending, moment),
            )
            raise

    def phase(self, attempt_id: str, phase: Phase) -> None:
        """Note where an attempt is. Sync; written with the next transaction."""
        self._writer.later(Step.JOURNAL_PHASE, attempt_id, lambda db: attempts.set_phase(db, attempt_id, phase.value))

    async def mark_log_started(self, attempt_id: str) -> bool:
        """True exactly once for an attempt: LogStart may be published then. Raises AttemptStateError if unknown."""
        return await self._writer.write(
            Step.JOURNAL_LOG_STARTED, lambda db: attempts.mark_log_started(db, attempt_id), synced=False
        )

    def lines_confirmed(self, attempt_id: str, through_line: int) -> None:
        """Note that the lines up to ``through_line`` have arrived on LOG. Sync; written with the next transaction."""
        self._writer.later(
            Step.JOURNAL_LINES_CONFIRMED,
            attempt_id,
            lambda db: attempts.set_lines_confirmed(db, attempt_id, through_line),
        )

    async def finish(
        self,
        attempt_id: str,
        *,
        result: OutboxResult | None,
        outcome: str,
        reason: str = "",
        durations: Mapping[Phase, float] | Mapping[str, float],
        lines: int = 0,
        peak_memory_bytes: int = 0,
    ) -> None:
        """End an attempt, and put its result in the outbox (None: nothing is sent) in the same transaction.

        ``outcome`` is the status in one word (model.result.status_name, or another word where there is no result),
        ``durations`` seconds by phase. After HostFault it may be called again: a second call with the same outcome does
        nothing. Raises AttemptStateError when it does not run.
        """
        by_name = {str(phase): seconds for phase, seconds in durations.items()}
        ending = Ending(outcome, reason, by_name, lines, peak_memory_bytes)
        moment = self._ages.moment()
        await self._writer.write(
            Step.JOURNAL_FINISH, lambda db: attempts.finish(db, attempt_id, result, ending, moment)
        )

    async def requeued(
        self,
        attempt_id: str,
        reason: str,
        *,
        host_fault: bool = True,
        durations: Mapping[str, float] = UNKNOWN,
    ) -> None:
        """End an attempt without a result: its message goes back to the queue.

        ``host_fault`` False (a shutdown) does not count for the job; ``durations`` as in ``finish``. After HostFault it
        is done with the next transaction, so that the message can be taken again by then. Raises AttemptStateError when
        it does not run.
        """
        moment = self._ages.moment()
        ending = attempts.requeue_ending(reason, durations)
        try:
            await self._writer.write(
                Step.JOURNAL_REQUEUED,
                lambda db: attempts.requeued(db, attempt_id, ending, moment, host_fault=host_fault),
            )
        except HostFault:
            self._writer.later(
                Step.JOURNAL_REQUEUED,
                attempt_id,
                lambda db: attempts.take_back(db, attempt_id, ending, moment, host_fault=host_fault),
            )
            raise

    async def interrupted(self) -> tuple[Interrupted, ...]:
        """Attempts that an earlier daemon left running: each is ended and counted for its job.

        To be called once, after ``open`` and before the first ``begin``.
        """
        moment = self._ages.moment()
        return await self._writer.write(Step.JOURNAL_INTERRUPTED, lambda db: attempts.interrupted(db, moment))

    async def unacknowledged(self) -> tuple[tuple[JobKey, str], ...]:
        """Finished jobs whose ack is not known to have been processed, with their attempts' ids: they may come back."""
        moment = self._ages.moment()
        return await self._writer.read(lambda db: attempts.unacknowledged(db, moment, self._expiry_ms))

    async def find_attempts(self, prefix: str, *, limit: int) -> tuple[str, ...]:
        """Ids of attempts, running or ended, that begin with ``prefix``; at most ``limit``."""
        return await self._writer.read(lambda db: attempts.with_prefix(db, prefix, limit))

    async def acked(self, attempt_id: str) -> None:
        """The broker processed the ack of this attempt's delivery: the same message again is a new job from now on.

        Raises AttemptStateError while it runs. Does nothing for a delivery that is forgotten.
        """
        await self._writer.write(Step.JOURNAL_ACKED, lambda db: attempts.acked(db, attempt_id), synced=False)

    # --- outbox -------------------------------------------------------------------------------------------------------

    async def outbox(self, *, after: int = 0, limit: int = 1000) -> tuple[OutboxEntry, ...]:
        """Results on their way, in the order of finishing; the next page is ``after`` the last entry's position."""
        return await self._writer.read(lambda db: outbox.entries(db, after=after, limit=limit))

    async def live_attempts(self) -> frozenset[str]:
        """Ids of the attempts that run or whose results are on their way: their logs must stay."""
        return await self._writer.read(outbox.live_attempts)

    async def mark_log_copy(self, attempt_id: str) -> bool:
        """True exactly once for an attempt: the copy on LOG may be published then. False too when none goes there.

        Raises AttemptStateError when it is not in the outbox, or RES is neither confirmed nor known to be unroutable.
        """
        return await self._writer.write(Step.JOURNAL_LOG_COPY, lambda db: outbox.mark_log_copy(db, attempt_id))

    async def confirm_and_mark(self, attempt_id: str) -> bool:
        """The result was confirmed as routed to RES. True exactly once: the copy on LOG may be published then.

        Raises AttemptStateError when it is not in the outbox.
        """
        return await self._writer.write(Step.JOURNAL_RES_CONFIRMED, lambda db: outbox.confirm_and_mark(db, attempt_id))

    async def unroutable(self, attempt_id: str, *, permanent: bool) -> None:
        """RES came back: the result stays in the outbox.

        Raises AttemptStateError when it is not in the outbox, or was confirmed before.
        """
        await self._writer.write(
            Step.JOURNAL_UNROUTABLE, lambda db: outbox.unroutable(db, attempt_id, permanent=permanent)
        )

    def log_done(self, attempt_id: str) -> None:
        """Nothing more goes to LOG; with RES confirmed the entry leaves the outbox. Sync; with the next transaction.

        A crash before that leaves an entry in state LOG_MARKED, for which this is called again. Not needed where
        nothing goes to LOG: there the confirmation on RES is the end.
        """
        self._writer.later(Step.JOURNAL_LOG_DONE, attempt_id, lambda db: outbox.log_done(db, attempt_id))

    # --- history and counts -------------------------------------------------------------------------------------------

    async def history(
        self,
        identity: str | None = None,
        since: datetime | None = None,
        *,
        limit: int = 100,
        before: str | None = None,
    ) -> tuple[HistoryEntry, ...]:
        """Ended attempts, newest first, interrupted and requeued ones too.

        ``before`` is the last attempt id of the page before. Raises AttemptStateError when it is no ended attempt.
        """
        return await self._writer.read(
            lambda db: history.page(db, identity=identity, since=since, before=before, limit=limit)
        )

    async def counters(self) -> Mapping[str, Counters]:
        """Counts by identity; an identity without any is missing."""
        wall_ms = self._ages.moment().wall_ms
        return await self._writer.read(lambda db: history.counters(db, wall_ms))

    async def restarted(self, identity: str) -> None:
        """Count a restart of an identity."""
        await self._writer.write(Step.JOURNAL_RESTARTED, lambda db: holds.restarted(db, identity))

    async def prune(self, keep_days: int) -> int:
        """Remove ended attempts older than ``keep_days``, and expired deliveries; returns how many attempts.

        In small transactions, so that other calls are served in between. What is on its way stays.
        """
        moment = self._ages.moment()
        before_ms = moment.wall_ms - keep_days * history.DAY_MS
        await self._writer.write(Step.JOURNAL_EXPIRED, lambda db: attempts.forget_expired(db, moment, self._expiry_ms))
        removed = 0
        while True:
            batch = await self._writer.write(
                Step.JOURNAL_PRUNED, lambda db: history.prune_batch(db, before_ms, moment.wall_ms - 2 * history.DAY_MS)
            )
            removed += batch
            if batch < history.PRUNE_BATCH_ROWS:
                return removed

    # --- holds --------------------------------------------------------------------------------------------------------

    async def set_pause(self, identity: str, reason: str, until: datetime | None) -> None:
        """Pause an identity until it is cleared, or ``until`` comes."""
        wall_ms = self._ages.moment().wall_ms
        await self._writer.write(Step.JOURNAL_HOLD, lambda db: holds.put(db, identity, reason, until, wall_ms))

    async def clear_pause(self, identity: str) -> bool:
        """End a pause; False when there was none."""
        return await self._writer.write(Step.JOURNAL_HOLD_CLEARED, lambda db: holds.clear(db, identity))

    async def pauses(self) -> tuple[Hold, ...]:
        """Pauses that are not over."""
        wall_ms = self._ages.moment().wall_ms
        return await self._writer.read(lambda db: holds.active(db, wall_ms))

    # --- processes: process.ProcessRegistry ---------------------------------------------------------------------------

    def started(self, attempt_id: str, pid: int, start_time: str, argv0: str) -> None:
        """A process runs from now on. Sync; on file when this returns."""
        with around(Step.PROCESS_STARTED):
            self._processes.started(attempt_id, pid, start_time, argv0)

    def ended(self, pid: int) -> None:
        """The process and all it started are gone: also said of each of the leftovers after the sweep."""
        with around(Step.PROCESS_ENDED):
            self._processes.ended(pid)

    def leftovers(self) -> tuple[LeftProcess, ...]:
        """Processes that an earlier daemon started and did not see end."""
        return self._processes.leftovers()
