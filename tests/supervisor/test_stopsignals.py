"""A SIGHUP is a reload, unless it says that the terminal of the daemon is gone."""

from __future__ import annotations

import os
import pty

from ofborg_async.supervisor.stopsignals import TerminalWatch


def test_a_terminal_that_hangs_up_is_lost() -> None:
    master, slave = pty.openpty()
    try:
        watch = TerminalWatch(slave)
        assert not watch.is_lost()
        os.close(master)
        assert watch.is_lost()
    finally:
        os.close(slave)


def test_where_there_was_no_terminal_none_is_lost() -> None:
    reading, writing = os.pipe()
    try:
        assert not TerminalWatch(reading).is_lost()
    finally:
        os.close(reading)
        os.close(writing)
