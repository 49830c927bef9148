"""The way to daemons of other hosts: OpenSSH forwards a stream to their control socket, the control client speaks."""
