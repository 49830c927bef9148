"""Configuration: schema, loading of TOML and of the original's JSON, conversion, reports.

``load`` gives Settings or raises ConfigError with every fault; ``check_report`` and ``convert_to_toml`` are what the
commands print.
"""

from ofborg_async.config.changes import changed_daemon_keys, changed_identity_keys, running_daemon_settings
from ofborg_async.config.convert import convert_to_toml
from ofborg_async.config.fingerprint import files_changed_since, fingerprint
from ofborg_async.config.loading import control_socket_of, load
from ofborg_async.config.places import Host, default_control_socket, default_state_dir
from ofborg_async.config.report import CheckReport, check_report

__all__ = [
    "CheckReport",
    "Host",
    "changed_daemon_keys",
    "changed_identity_keys",
    "check_report",
    "control_socket_of",
    "convert_to_toml",
    "default_control_socket",
    "default_state_dir",
    "files_changed_since",
    "fingerprint",
    "load",
    "running_daemon_settings",
]
