"""Private real parts for the demo, the benchmarks and the tests: RabbitMQ, nix stores, upstream repositories, OpenSSH.

Each lives in a directory of its own, listens on the loopback only and leaves nothing behind.
"""
