"""Another builder's processes on the ground: one for each identity, each with a JSON configuration."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ofborg_async.lab.chaos.builders import Theirs
from ofborg_async.lab.chaos.plan import SYSTEMS
from ofborg_async.lab.namespace import namespaces_work, private_nix
from ofborg_async.lab.servers import LOOPBACK, LabError, Server, base_environment


@asynccontextmanager
async def their_builder(
    place: Path, program: Path, names: Sequence[str], port: int, user: str, password: str
) -> AsyncIterator[Theirs]:
    """A Theirs that is not started yet. Its nix is a private one: it gives nix surroundings of its own."""
    if not namespaces_work():
        raise LabError("--against works on Linux as root: the other builder gets its nix.conf by a mount namespace")
    async with private_nix(place / "nix") as nix:
        servers, roots = [], []
        for name in names:
            root = place / "roots" / name
            root.mkdir(parents=True)
            document = {
                "runner": {"identity": name},
                "feedback": {"full_logs": True},
                "checkout": {"root": str(root)},
                "nix": {"system": list(SYSTEMS), "remote": "daemon", "build_timeout_seconds": 3600},
                "rabbitmq": {
                    "ssl": False,
                    "host": f"{LOOPBACK}:{port}",
                    "virtualhost": "/",
                    "username": user,
                    "password": password.replace(" ", "%20"),
                },
            }
            file = place / f"{name}.json"
            file.write_text(json.dumps(document))
            author = {"GIT_AUTHOR_NAME": "lab", "GIT_COMMITTER_NAME": "lab", "EMAIL": "lab@localhost"}
            env = base_environment(HOME=str(place), GIT_CONFIG_NOSYSTEM="1", **author)
            words = [*nix.prefix, str(program), str(file)]
            servers.append(Server(name, words, env=env, log=place / f"{name}.log"))
            roots.append(root)
        yield Theirs(tuple(servers), tuple(roots), place / "mirrors")
