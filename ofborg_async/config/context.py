"""What resolving one configuration shares: the host, where faults go, what was read on the way."""

from __future__ import annotations

from pathlib import Path

from attrs import Factory, field, frozen

from ofborg_async.config.layers import Draft
from ofborg_async.config.places import Host
from ofborg_async.config.problems import Problems, dotted

REMEDIES = {
    ("name",): 'name = "..." is missing: the public name of this builder on the wire',
    ("nix", "systems"): 'missing: say what to build for, such as systems = ["x86_64-linux"]',
    ("rabbitmq", "host"): 'missing: name the broker, such as host = "broker.example.org"',
    ("rabbitmq", "username"): "missing: the broker's user for this builder",
}


@frozen
class Context:
    """One run of the resolver.

    ``digests``: what each further file that was read contained; ``roots``: the resolved root of each identity that has
    one, also of those that have faults.
    """

    host: Host
    problems: Problems
    credentials_directory: Path | None
    state_dir: Path
    digests: dict[Path, str] = field(init=False, default=Factory(dict))
    roots: list[tuple[str, Path]] = field(init=False, default=Factory(list))

    def missing(self, draft: Draft, path: tuple[str, ...]) -> None:
        """Say that a key is missing, unless it is there and was called wrong already."""
        if not draft.is_faulty(path):
            message = REMEDIES[path] if not draft.is_json else f"missing ({dotted(path)} in TOML)"
            self.problems.fault(draft.place(*path), message)
