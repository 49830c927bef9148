"""The only room that spawns: commands, their lines, and the end of everything they started."""

from ofborg_async.process.command import Command, Completed, StopPolicy
from ofborg_async.process.lines import LineSplitter
from ofborg_async.process.records import ProcessRecord, ProcessRegistry
from ofborg_async.process.spawner import Spawner
from ofborg_async.process.sweep import become_subreaper, end_leftovers, name_of, records_of
from ofborg_async.process.table import cpu_seconds_of

__all__ = [
    "Command",
    "Completed",
    "LineSplitter",
    "ProcessRecord",
    "ProcessRegistry",
    "Spawner",
    "StopPolicy",
    "become_subreaper",
    "cpu_seconds_of",
    "end_leftovers",
    "name_of",
    "records_of",
]
