"""Takes the lock file FILE and starts a process that inherits it; prints that one's number, then waits to be ended."""

import fcntl
import os
import subprocess
import sys
import time

descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
child = subprocess.Popen(
    ["sleep", "600"],
    pass_fds=(descriptor,),
    start_new_session=True,
    stdout=subprocess.DEVNULL,
    stdin=subprocess.DEVNULL,
)
print(child.pid, flush=True)
time.sleep(600)
