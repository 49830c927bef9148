"""Builder identities and the daemon's own settings, as validated values. The configuration room makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import field, frozen

EMPTY: Mapping[str, str] = MappingProxyType({})
EMPTY_DIGESTS: Mapping[Path, str] = MappingProxyType({})


@frozen
class Secret:
    """A secret text that no repr, log line or error shows; ``reveal()`` is called where a library needs it."""

    _value: str = field(repr=False)

    def reveal(self) -> str:
        """The secret itself."""
        return self._value

    def __str__(self) -> str:
        return "********"

    def __repr__(self) -> str:
        return "Secret(********)"


@frozen
class BrokerSettings:
    """How an identity reaches its broker. Identities with equal settings share connections.

    ``addresses`` are ``host:port`` pairs, tried in turn. ``vhost`` and ``username`` are literal (not escaped).
    ``ca_file`` None means the system's authorities; ``client_certificate_file`` and ``client_key_file`` go together.
    ``certificates`` are the keys of such files with digests of their contents, so that other contents
    are other settings.
    """

    addresses: tuple[tuple[str, int], ...]
    vhost: str
    username: str
    password: Secret
    ssl: bool = True
    ca_file: Path | None = None
    client_certificate_file: Path | None = None
    client_key_file: Path | None = None
    server_name: str | None = None
    heartbeat_seconds: int = 20
    connect_timeout_seconds: float = 15.0
    call_timeout_seconds: float = 30.0
    unroutable_hold_seconds: float = 300.0
    certificates: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@frozen
class NixSettings:
    """How an identity evaluates and builds. ``remote`` is NIX_REMOTE as it is, "" too; sizes are nix's own text."""

    systems: tuple[str, ...]
    remote: str = ""
    build_timeout_seconds: int = 3600
    eval_timeout_seconds: float = 600.0
    attempt_timeout_seconds: float = 6 * 3600.0
    initial_heap_size: str | None = None
    environment: Mapping[str, str] = EMPTY


@frozen
class LimitSettings:
    """Bounds of one identity's work, each with its unit in its name."""

    message_bytes: int = 4 * 1024 * 1024
    line_bytes: int = 16 * 1024
    log_bytes: int = 128 * 1024 * 1024
    log_tail_lines: int = 200
    fetch_timeout_seconds: float = 1800.0
    checkout_timeout_seconds: float = 600.0
    host_fault_retries: int = 3
    host_fault_backoff_seconds: float = 2.0
    max_attempts: int = 5
    delivery_limit: int = 20
    disk_floor_bytes: int = 512 * 1024 * 1024
    disk_floor_inodes: int = 10_000
    quarantine_after: int = 3
    quarantine_seconds: float = 600.0


@frozen
class IdentitySettings:
    """One builder identity: its public name, its root, and what it may use.

    ``source`` names the file it came from. ``tags_systems`` are all systems of the identity in configured order:
    the consumer tag joins them.
    """

    name: str
    root: Path
    nix: NixSettings
    broker: BrokerSettings
    limits: LimitSettings = LimitSettings()
    build_all_jobs: bool = False
    weight: int = 1
    replace_root_in_logs: bool = False
    clone_url_schemes: tuple[str, ...] = ("https", "ssh", "git", "http")
    git_name: str = "ofborg"
    git_email: str = "ofborg@localhost"
    source: str = ""

    @property
    def consumer_tag(self) -> str:
        """The consumer tag on the wire: ``<identity>-<systems joined with ",">-builder``."""
        return f"{self.name}-{','.join(self.nix.systems)}-builder"


@frozen
class DaemonSettings:
    """What the daemon does once for the host."""

    state_dir: Path
    control_socket: Path
    control_group: str | None = None
    log_level: str = "info"
    log_format: str = "auto"
    metrics_listen: tuple[str, int] | None = None
    max_builds: int = 0
    max_evaluations: int = 0
    shutdown_grace_seconds: float = 0.0
    allow_root: bool = False
    restart_intensity: int = 5
    restart_period_seconds: float = 60.0
    backoff_first_seconds: float = 1.0
    backoff_max_seconds: float = 60.0
    history_keep_days: int = 30
    log_keep_bytes: int = 2 * 1024 * 1024 * 1024


@frozen
class Settings:
    """A whole configuration: the daemon and its identities, the files it came from and their fingerprint.

    ``fingerprint`` is a SHA-256 over the resolved configuration without secrets; ``warnings`` are for people;
    ``digests`` says what each file that was read contained, password files too, to notice that one changed.
    """

    daemon: DaemonSettings
    identities: tuple[IdentitySettings, ...]
    files: tuple[Path, ...] = ()
    fingerprint: str = ""
    warnings: tuple[str, ...] = ()
    digests: Mapping[Path, str] = field(default=EMPTY_DIGESTS, repr=False)
