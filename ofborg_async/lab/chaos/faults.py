"""Which fault is done by which function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from ofborg_async.lab.chaos import brokerfaults, hostfaults, pathfaults, processfaults, repositoryfaults
from ofborg_async.lab.chaos.ground import Ground
from ofborg_async.lab.chaos.plan import FaultKind, FaultPlan

Strike = Callable[[Ground, FaultPlan], Awaitable[bool]]
"""Does a fault, and undoes it before it returns whether there was anything to do it to."""

STRIKES: Mapping[FaultKind, Strike] = {
    FaultKind.DAEMON_KILLED: processfaults.kill_daemon,
    FaultKind.DAEMON_RESTARTED: processfaults.restart_daemon,
    FaultKind.DAEMON_CUT_SHORT: processfaults.cut_stop_short,
    FaultKind.BROKER_KILLED: brokerfaults.kill,
    FaultKind.BROKER_RESTARTED: brokerfaults.restart,
    FaultKind.CONNECTIONS_CLOSED: brokerfaults.close_connections,
    FaultKind.ALARM: brokerfaults.alarm,
    FaultKind.DISK_ALARM: brokerfaults.disk_alarm,
    FaultKind.WRONG_PASSWORD: brokerfaults.wrong_password,
    FaultKind.QUEUE_DELETED: brokerfaults.delete_queue,
    FaultKind.RESULTS_DELETED: brokerfaults.delete_results,
    FaultKind.LOGS_DELETED: brokerfaults.delete_logs,
    FaultKind.UNBOUND: brokerfaults.unbind_results,
    FaultKind.PATH_FROZEN: pathfaults.freeze,
    FaultKind.PATH_HALF_FROZEN: pathfaults.freeze_one_way,
    FaultKind.PATH_SLOW: pathfaults.slow,
    FaultKind.PATH_CUT: pathfaults.cut,
    FaultKind.PATH_REFUSED: pathfaults.refuse,
    FaultKind.UPSTREAM_AWAY: repositoryfaults.take_upstream_away,
    FaultKind.UPSTREAM_SILENT: pathfaults.silence_upstream,
    FaultKind.FORCE_PUSHED: repositoryfaults.force_push,
    FaultKind.PR_DELETED: repositoryfaults.delete_pr,
    FaultKind.BRANCH_RENAMED: repositoryfaults.rename_branch,
    FaultKind.STALE_LOCKS: repositoryfaults.leave_locks,
    FaultKind.TRUNCATED: repositoryfaults.truncate,
    FaultKind.HALF_CLONE: repositoryfaults.halve_clone,
    FaultKind.IDENTITY_RESTARTED: processfaults.restart_identity,
    FaultKind.HURRIED: processfaults.hurry_daemon,
    FaultKind.CHILD_STOPPED: processfaults.stop_child,
    FaultKind.CHILD_KILLED: processfaults.kill_child,
    FaultKind.BUILDER_KILLED: processfaults.kill_builder,
    FaultKind.COLLECTED: repositoryfaults.collect,
    FaultKind.NIX_DAEMON_RESTARTED: hostfaults.restart_nix_daemon,
    FaultKind.DISK_FULL: hostfaults.fill_disk,
    FaultKind.INODES_USED_UP: hostfaults.use_up_inodes,
    FaultKind.READ_ONLY: hostfaults.make_read_only,
    FaultKind.CLOCK_SET_BACK: hostfaults.set_clock_back,
}
