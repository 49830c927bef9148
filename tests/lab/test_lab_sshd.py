from __future__ import annotations

from pathlib import Path

import pytest

from ofborg_async.lab.commands import run
from ofborg_async.lab.servers import LabError, base_environment
from ofborg_async.lab.sshd import Sshd, private_sshd


async def ssh(server: Sshd, key: Path, *words: str) -> str:
    options = ["-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={server.known_hosts}"]
    place = ["-i", str(key), "-p", str(server.port), f"{server.user}@{server.host}"]
    return (await run("ssh", *options, *place, *words, env=base_environment())).decode()


async def test_its_key_logs_in_and_no_other(tmp_path: Path) -> None:
    other = tmp_path / "other"
    await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other), env=base_environment())
    async with private_sshd(tmp_path / "sshd", "AllowStreamLocalForwarding yes") as server:
        assert await ssh(server, server.client_key, "echo", "hello") == "hello\n"
        with pytest.raises(LabError, match="Permission denied"):
            await ssh(server, other, "echo", "hello")
    with pytest.raises(LabError, match="Connection refused"):
        await ssh(server, server.client_key, "echo", "hello")
