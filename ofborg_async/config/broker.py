"""Broker settings of one identity: addresses, password, certificates."""

from __future__ import annotations

from pathlib import Path

import attrs

from ofborg_async.config.addresses import format_address, is_local, parse_broker_address
from ofborg_async.config.context import Context
from ofborg_async.config.documents import digest, explain_os_error, read_bytes
from ofborg_async.config.layers import Draft, said
from ofborg_async.config.passwords import find_password
from ofborg_async.config.problems import Place, hiding, printable
from ofborg_async.config.schema import RabbitTable
from ofborg_async.config.strict import Rejected
from ofborg_async.model.identity import BrokerSettings, Secret

PLAIN_PORT, TLS_PORT = 5672, 5671
PEM_BYTES_MOST = 16 * 1024 * 1024
TRANSLATED = frozenset(
    {"host", "virtualhost", "password", "password_file", "password_credential", "password_percent_encoded"}
)


def resolve_broker(draft: Draft, context: Context) -> BrokerSettings | None:
    """The broker settings of a draft with defaults laid under it; None when something is missing or wrong."""
    table = draft.table.rabbitmq
    missing = [name for name in ("host", "username") if getattr(table, name) is None]
    for name in missing:
        context.missing(draft, ("rabbitmq", name))
    password = _password(draft, context)
    certificates = _certificates(draft, table, context)
    if missing or password is None or certificates is None:
        return None
    ssl = table.ssl if table.ssl is not None else attrs.fields(BrokerSettings).ssl.default
    addresses = tuple(
        (host, port if port is not None else TLS_PORT if ssl else PLAIN_PORT)
        for host, port in map(parse_broker_address, table.host or ())
    )
    remote = [format_address(*address) for address in addresses if not is_local(address[0])]
    if not ssl and remote:
        context.problems.warn(
            draft.place("rabbitmq", "ssl"),
            f"is false: the password goes to {', '.join(remote)} as clear text; set ssl = true",
        )
    return BrokerSettings(
        addresses=addresses,
        vhost=table.virtualhost if table.virtualhost is not None else "/",
        password=password,
        certificates=certificates,
        **{name: value for name, value in said(table).items() if name not in TRANSLATED},
    )


def _password(draft: Draft, context: Context) -> Secret | None:
    """The password; None when it is missing (told, unless it is because of a key that was said wrongly)."""
    if any(draft.is_faulty(("rabbitmq", name)) for name in ("password", "password_file", "password_credential")):
        return None
    table = draft.table.rabbitmq
    key = next((name for name in ("password_file", "password_credential") if getattr(table, name)), "password")
    place = draft.place("rabbitmq", key)
    try:
        found = find_password(table, context.credentials_directory)
    except Rejected as error:
        context.problems.fault(place, str(error))
        return None
    if found.file is not None:
        context.digests[found.file] = found.digest
        in_credentials = context.credentials_directory is not None and found.file.is_relative_to(
            context.credentials_directory
        )
        if found.mode & 0o007 and not in_credentials:
            _warn_readable(found.file, place, context)
    return found.secret


def _warn_readable(path: Path, place: Place, context: Context) -> None:
    name = printable(str(path))
    context.problems.warn(place, f"everybody on this host can read {name}; {hiding(path, name)}")


def _certificates(draft: Draft, table: RabbitTable, context: Context) -> tuple[tuple[str, str], ...] | None:
    """The key of each certificate file with a digest of its content; None when one cannot be read or is missing."""
    good = True
    digests: dict[str, str] = {}
    for name in ("ca_file", "client_certificate_file", "client_key_file"):
        path: Path | None = getattr(table, name)
        if path is None:
            continue
        try:
            data, mode = read_bytes(path, PEM_BYTES_MOST)
        except (OSError, ValueError) as error:
            context.problems.fault(
                draft.place("rabbitmq", name), f"{printable(str(path))} cannot be read: {explain_os_error(error)}"
            )
            good = False
            continue
        context.digests[path] = digests[name] = digest(data)
        if name == "client_key_file" and mode & 0o007:
            _warn_readable(path, draft.place("rabbitmq", name), context)
    if (table.client_certificate_file is None) != (table.client_key_file is None):
        said_one = "client_key_file" if table.client_certificate_file is None else "client_certificate_file"
        other = "client_certificate_file" if table.client_certificate_file is None else "client_key_file"
        if not draft.is_faulty(("rabbitmq", other)):
            context.problems.fault(draft.place("rabbitmq", said_one), f"needs {other} beside it")
        good = False
    return tuple(digests.items()) if good else None
