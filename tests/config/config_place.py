"""A host that is not this one, and files in a temporary folder: a configuration is loaded as it would be there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from ofborg_async.config import Host, load
from ofborg_async.errors import ConfigError, ConfigFault
from ofborg_async.model.identity import Settings

IDENTITY = """
[[identity]]
name = "alpha"
nix.systems = ["x86_64-linux"]
rabbitmq = { host = "broker.example.org", username = "user", password = "hunter2" }
feedback.full_logs = true
"""


@attrs.frozen
class Place:
    """Loads files of a temporary folder, with an environment and a host of the test's own."""

    folder: Path
    host: Host = attrs.field(default=attrs.Factory(lambda self: elsewhere(self.folder), takes_self=True))

    def write(self, name: str, content: str | bytes | Mapping[str, Any], mode: int = 0o600) -> Path:
        """Write a file; a mapping is written as JSON."""
        path = self.folder / name
        data = json.dumps(content) if isinstance(content, Mapping) else content
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        path.chmod(mode)
        return path

    def load(self, *paths: Path, environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
        """Load with state and socket in the folder, unless ``environ`` says otherwise."""
        places = {"STATE_DIRECTORY": str(self.folder / "state"), "RUNTIME_DIRECTORY": str(self.folder / "run")}
        return load(paths, environ={**places, **(environ or {})}, host=self.host, **options)

    def toml(self, text: str, *, mode: int = 0o600, **options: Any) -> Settings:
        """Load one TOML text."""
        return self.load(self.write("a.toml", text, mode), **options)

    def faults(self, *paths: Path, **options: Any) -> dict[str, str]:
        """The faults of files that must have some: message by key."""
        with pytest.raises(ConfigError) as caught:
            self.load(*paths, **options)
        return {fault.key: fault.message for fault in caught.value.faults}

    def toml_faults(self, text: str, **options: Any) -> dict[str, str]:
        """The faults of one TOML text."""
        return self.faults(self.write("a.toml", text), **options)

    def raw_faults(self, *paths: Path, **options: Any) -> tuple[ConfigFault, ...]:
        """The faults with file and line."""
        with pytest.raises(ConfigError) as caught:
            self.load(*paths, **options)
        return caught.value.faults


def elsewhere(working_directory: Path) -> Host:
    """A Linux host with a login user."""
    return Host(
        platform="linux",
        user_id=1000,
        user_name="jdoe",
        host_name="ws42.example.org",
        home=Path("/home/jdoe"),
        homes=(Path("/home"), Path("/Users"), Path("/root"), Path("/var/root")),
        working_directory=working_directory,
    )


def original(**sections: Any) -> dict[str, Any]:
    """A document of the original builder, generation 1; keyword arguments replace sections, None takes one out."""
    document: dict[str, Any] = {
        "runner": {"identity": "alpha"},
        "checkout": {"root": "/var/lib/ofborg-test/checkout"},
        "nix": {"system": "x86_64-linux", "remote": "daemon", "build_timeout_seconds": 1800},
        "rabbitmq": {
            "ssl": True,
            "host": "broker.example.org",
            "virtualhost": "ofborg",
            "username": "user",
            "password": "hunter2",
        },
        "feedback": {"full_logs": True},
    }
    document.update(sections)
    return {name: section for name, section in document.items() if section is not None}
