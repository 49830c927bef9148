"""The control API: HTTP over a Unix socket, its server and its client. It sees frozen snapshots, no live object."""
