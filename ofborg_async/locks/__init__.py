"""Who may use what: fair queues inside the process, flock between processes, and roots told apart by what is on disk.

Keys and holders are opaque here.
"""

from ofborg_async.locks.filelock import FileLock, HolderNote, acquire_file_lock
from ofborg_async.locks.inspect import Holder, holder_of, keepers_of
from ofborg_async.locks.manager import LockManager
from ofborg_async.locks.mounts import refuse_network_file_system
from ofborg_async.locks.rootlock import RootLock, acquire_root_lock
from ofborg_async.locks.roots import RootConflict, RootId, find_conflicts, identify_root

__all__ = [
    "FileLock",
    "Holder",
    "HolderNote",
    "LockManager",
    "RootConflict",
    "RootId",
    "RootLock",
    "acquire_file_lock",
    "acquire_root_lock",
    "find_conflicts",
    "holder_of",
    "identify_root",
    "keepers_of",
    "refuse_network_file_system",
]
