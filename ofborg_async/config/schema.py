"""The keys of a TOML configuration: the one place that names them, says what they mean and what they may be.

A field None was not said. The defaults stand in ``ofborg_async.model.identity``; docs/configuration.md is written
from this module (``python -m ofborg_async.config.reference``).
"""

# ruff: noqa: RUF009 - key() is attrs' own field() with its documentation, no default that is computed once
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from attrs import field, frozen

from ofborg_async.config.checks import (
    Between,
    BrokerHosts,
    Choice,
    Choices,
    HeapSize,
    ListenAddress,
    PathComponent,
    Systems,
    Text,
    Variables,
)
from ofborg_async.config.strict import OneOrMany
from ofborg_async.model.identity import Secret

YEAR_SECONDS = 366 * 24 * 3600
MOST = 2**31 - 1
BYTES_MOST = 2**60

Count = Annotated[int, Between(0, MOST)]
CountFromOne = Annotated[int, Between(1, MOST)]
Bytes = Annotated[int, Between(0, BYTES_MOST)]
Seconds = Annotated[float, Between(0.001, YEAR_SECONDS)]
SecondsOrZero = Annotated[float, Between(0, YEAR_SECONDS)]
Line = Annotated[str, Text()]
BrokerName = Annotated[str, Text()]  # an AMQP short string
Hosts = Annotated[tuple[str, ...], OneOrMany(), BrokerHosts()]
SystemNames = Annotated[tuple[str, ...], Systems()]
IdentityName = Annotated[str, PathComponent()]
PASSWORD_SOURCES = ("password", "password_file", "password_credential")


def key(doc: str, *, default: str = "", group: str = "", with_group: str = "") -> Any:
    """A key that may be left out. ``default`` is told to people where the model has none for it.

    A layer that says one key of a ``group`` hides the others of the layers below, and what goes ``with_group``.
    """
    return field(default=None, metadata={"doc": doc, "default": default, "group": group, "with_group": with_group})


@frozen
class Table:
    """Root of the classes that stand for TOML tables. ELSEWHERE: where a key that is often misplaced belongs."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {}


@frozen
class RunnerTable(Table):
    """How the identity takes work."""

    weight: CountFromOne | None = key("share of the host's build slots against the other identities")
    build_all_jobs: bool | None = key(
        "for development only: take every job from an exclusive queue of its own, so others build it as well"
    )


@frozen
class CheckoutTable(Table):
    """Where the identity keeps its repositories."""

    root: Path | None = key(
        "folder for clones and work trees; no other identity may use it, nor one inside it",
        default="`<daemon.state_dir>/<name>`",
    )
    allow_home: bool | None = key(
        "accept a root under a home directory, although its path shows in public build logs", default="`false`"
    )
    replace_root_in_logs: bool | None = key("write `<checkout>` in place of the root in log lines")
    clone_url_schemes: Annotated[tuple[str, ...], Choices(("https", "http", "ssh", "git", "file"))] | None = key(
        "transports that a job's clone URL may use: https, http, ssh, git, file"
    )


@frozen
class GitTable(Table):
    """Who the merge commits are by; they never leave this host."""

    name: Annotated[str, Text(forbidden="<>")] | None = key("author's name")
    email: Annotated[str, Text(forbidden="<> ")] | None = key("author's address")


@frozen
class NixTable(Table):
    """How the identity evaluates and builds."""

    systems: SystemNames | None = key("nix systems to build for; a queue and a work tree for each", default="required")
    remote: str | None = key(
        'NIX_REMOTE as it is: "daemon", a store URI, or "" (set but empty) for no daemon. A systemd unit printed while '
        'every identity has "daemon" takes away what builds need: print it anew before this changes'
    )
    build_timeout_seconds: Annotated[int, Between(1, MOST)] | None = key("nix's build-timeout, for each derivation")
    eval_timeout_seconds: Seconds | None = key("limit of one evaluation")
    attempt_timeout_seconds: Seconds | None = key(
        "limit of everything nix does for one job",
        default="`21600.0`, or the sum of the build, evaluation, fetch and checkout limits where that is more",
    )
    initial_heap_size: Annotated[str, HeapSize()] | None = key('GC_INITIAL_HEAP_SIZE of nix, such as "4g"')
    environment: Annotated[Mapping[str, str], Variables()] | None = key(
        "table of variables added to nix's environment; not a place for secrets"
    )

    ELSEWHERE: ClassVar[Mapping[str, str]] = {"system": "systems", "timeout": "build_timeout_seconds"}


@frozen
class RabbitTable(Table):
    """The broker the identity takes its jobs from. Identities with equal values share connections."""

    host: Hosts | None = key(
        '`"host"`, `"host:port"`, `"[IPv6]:port"`, or a list of them, tried in turn', default="required"
    )
    ssl: bool | None = key("encrypt; also decides the port where none is given: 5671 with, 5672 without")
    virtualhost: BrokerName | None = key("the broker's virtual host", default='`"/"`')
    username: BrokerName | None = key("user name, literal (no percent escapes)", default="required")
    password_file: Path | None = key(
        "file with the password; one newline at its end is dropped. Where it cannot be read, the service manager's "
        "credential of the same file name is used",
        default="one of the three is required",
        group="password",
    )
    password_credential: Annotated[str, PathComponent()] | None = key(
        "name of a credential of the service manager (systemd's LoadCredential=)",
        default="one of the three is required",
        group="password",
    )
    password: Secret | None = key(
        "the password itself; only in a file that no one else can read (`chmod 600`)",
        default="one of the three is required",
        group="password",
    )
    password_percent_encoded: bool | None = key(
        "the password is percent-escaped, as the original builder needs it", default="`false`", with_group="password"
    )
    ca_file: Path | None = key("certificates of the authorities to trust", default="the system's")
    client_certificate_file: Path | None = key("client certificate, PEM; needs client_key_file")
    client_key_file: Path | None = key("its private key, PEM")
    server_name: Annotated[str, Text(forbidden="/ ")] | None = key(
        "name that the broker's certificate must have", default="the host"
    )
    heartbeat_seconds: Annotated[int, Between(1, 3600)] | None = key(
        "a dead connection is noticed after about 3 of them"
    )
    connect_timeout_seconds: Seconds | None = key("limit of one attempt to connect")
    call_timeout_seconds: Seconds | None = key("limit of every other exchange with the broker")
    unroutable_hold_seconds: SecondsOrZero | None = key(
        "how long a result that no queue would get holds its identity before it is kept aside"
    )

    ELSEWHERE: ClassVar[Mapping[str, str]] = {"vhost": "virtualhost", "user": "username"}


@frozen
class LimitsTable(Table):
    """Bounds of the identity's work."""

    message_bytes: Annotated[int, Between(1024, BYTES_MOST)] | None = key("a larger job message is rejected unread")
    line_bytes: Annotated[int, Between(80, 1024 * 1024)] | None = key("a longer log line is cut and marked")
    log_bytes: Annotated[int, Between(4096, BYTES_MOST)] | None = key("a longer log keeps its head and its tail")
    log_tail_lines: Count | None = key("lines of the tail that a log over its limit keeps")
    fetch_timeout_seconds: Seconds | None = key("limit of a fetch from the repository")
    checkout_timeout_seconds: Seconds | None = key("limit of merging and checking out")
    host_fault_retries: Count | None = key("retries on the spot after a fault of this host or the network")
    host_fault_backoff_seconds: SecondsOrZero | None = key("wait before the first of them; doubles each time")
    max_attempts: CountFromOne | None = key("attempts at one job, over restarts, before it is answered with an error")
    delivery_limit: CountFromOne | None = key(
        "the x-delivery-limit of a quorum queue: a job is answered with an error before the broker would drop it"
    )
    disk_floor_bytes: Bytes | None = key("take no job with less free disk space than this")
    disk_floor_inodes: Bytes | None = key("take no job with fewer free inodes than this")
    quarantine_after: CountFromOne | None = key("faults of the host in a row after which the identity takes no work")
    quarantine_seconds: SecondsOrZero | None = key("how long it stays so")


@frozen
class FeedbackTable(Table):
    """What is published."""

    full_logs: bool | None = key(
        "must be `true`: build logs are published in full, as the original does", default="a warning that it is not set"
    )


@frozen
class IdentityTable(Table):
    """One `[[identity]]`, or `[defaults]` for all of them."""

    name: IdentityName | None = key("the public name on the wire and in results", default="required")
    runner: RunnerTable = RunnerTable()
    checkout: CheckoutTable = CheckoutTable()
    git: GitTable = GitTable()
    nix: NixTable = NixTable()
    rabbitmq: RabbitTable = RabbitTable()
    limits: LimitsTable = LimitsTable()
    feedback: FeedbackTable = FeedbackTable()

    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "root": "checkout.root",
        "systems": "nix.systems",
        "system": "nix.systems",
        "host": "rabbitmq.host",
        "weight": "runner.weight",
        "identity": "name",
        "environment": "nix.environment",
        "build_timeout_seconds": "nix.build_timeout_seconds",
        "build_all_jobs": "runner.build_all_jobs",
    }


@frozen
class DaemonTable(Table):
    """`[daemon]`: what is done once for the host."""

    state_dir: Path | None = key("journal, logs, mirrors and, unless said otherwise, the roots", default="see Places")
    control_socket: Path | None = key("the socket that the command speaks to", default="see Places")
    control_group: Line | None = key("group that may use the socket (mode 0660 in place of 0600)")
    log_level: Annotated[str, Choice(("debug", "info", "warning", "error"))] | None = key(
        "debug, info, warning or error"
    )
    log_format: Annotated[str, Choice(("auto", "text", "json"))] | None = key("auto, text or json")
    metrics_listen: Annotated[str, ListenAddress()] | None = key(
        'loopback address for /metrics, /healthz and a status page, such as `"127.0.0.1:9100"`', default="none"
    )
    max_builds: Count | None = key("builds at one time on this host, over all identities; 0: chosen from its size")
    max_evaluations: Count | None = key("evaluations at one time on this host; 0: chosen from its size")
    shutdown_grace_seconds: SecondsOrZero | None = key(
        "how long running jobs may go on after a stop; what is not done then is requeued"
    )
    allow_root: bool | None = key("run as root nevertheless")
    restart_intensity: CountFromOne | None = key("crashes of an identity within the period below before it stays down")
    restart_period_seconds: Seconds | None = key("that period")
    backoff_first_seconds: Seconds | None = key("wait before the first attempt to connect again; doubles each time")
    backoff_max_seconds: Seconds | None = key("longest such wait")
    history_keep_days: Count | None = key("finished attempts are forgotten after so many days")
    log_keep_bytes: Bytes | None = key("local copies of logs: the oldest are deleted above this sum")


@frozen
class TomlDocument(Table):
    """A whole TOML file."""

    daemon: DaemonTable = DaemonTable()
    defaults: IdentityTable = IdentityTable()
    identity: tuple[IdentityTable, ...] = ()

    ELSEWHERE: ClassVar[Mapping[str, str]] = {"identities": "identity", "default": "defaults"}
