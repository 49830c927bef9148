"""The original's JSON as one commented TOML file that means the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from ofborg_async.config.checks import percent_decode
from ofborg_async.config.documents import read_document
from ofborg_async.config.layers import Draft, said
from ofborg_async.config.loading import check_names
from ofborg_async.config.names import is_personal
from ofborg_async.config.original import OriginalLayer, assemble, read_original
from ofborg_async.config.places import Host
from ofborg_async.config.problems import Place, Problems, dotted
from ofborg_async.config.resolve import resolved
from ofborg_async.config.schema import IdentityTable, Table
from ofborg_async.errors import ConfigError
from ofborg_async.model.identity import Secret

SECRETS_DIRECTORY = Path("/etc/ofborg-async")
Values = dict[tuple[str, str], Any]

DAEMON_PART = """\
[daemon]
# What is done once for the host; docs/configuration.md has every key. Nothing here is required.
# state_dir = "/var/lib/ofborg-async"
# max_builds = 2                      # builds at one time, over all identities
# metrics_listen = "127.0.0.1:9100"   # Prometheus and a status page"""


@frozen
class _Identity:
    """One identity on its way to TOML: ``values`` by (section, key), ``notes`` that stand above a key."""

    name: str
    values: Values
    notes: Mapping[tuple[str, str], str]


def convert_to_toml(
    paths: Sequence[Path],
    *,
    inline_secrets: bool = False,
    secrets_directory: Path = SECRETS_DIRECTORY,
    host: Host | None = None,
) -> str:
    """The TOML text for the original's ``paths``; it loads to the same settings once its passwords are in place.

    Passwords are written into the text only with ``inline_secrets``; else each is expected in a file below
    ``secrets_directory``, and a comment says so. Needs no password file to be there. Raises ConfigError.
    """
    host = host or Host.here()
    problems = Problems()
    layers = _read(paths, host, problems)
    drafts = assemble(layers, problems)
    check_names(drafts, problems)
    if not drafts and not problems.faults:
        problems.fault(Place("configuration"), "no file has runner.identity, so there is no identity to convert")
    problems.sort([layer.source.name for layer in layers])
    if problems.faults:
        raise ConfigError(problems.faults)
    shared = len({_password(draft) for draft in drafts}) == 1 and len(drafts) > 1
    identities = [
        _identity(
            draft,
            host,
            secret_file=None if inline_secrets else secrets_directory / _file_name(draft, shared=shared),
            holder=_holder(draft, layers),
        )
        for draft in drafts
    ]
    return (
        "\n\n".join([_head(layers, problems, inline_secrets=inline_secrets), DAEMON_PART, *_parts(identities)]) + "\n"
    )


def _read(paths: Sequence[Path], host: Host, problems: Problems) -> list[OriginalLayer]:
    layers = []
    for path in paths:
        document = read_document(path, problems)
        if document is None:
            continue
        if document.is_json:
            layers.append(read_original(document, host.working_directory, problems))
        else:
            problems.fault(Place(document.source.name), "is TOML already; convert takes the original builder's JSON")
    return layers


def _password(draft: Draft) -> Secret | None:
    return draft.table.rabbitmq.password


def _file_name(draft: Draft, *, shared: bool) -> str:
    return "rabbitmq.password" if shared else f"{draft.table.name}.password"


def _holder(draft: Draft, layers: Sequence[OriginalLayer]) -> str:
    """The file, and the key in it, that has the inline password of a draft."""
    where = draft.renamed.get(("rabbitmq", "password"), ())
    names = [
        layer.source.name
        for layer in layers
        if (layer.source is draft.source or not layer.starts_identity) and layer.has_password
    ]
    return f"{dotted(where)} of {names[-1] if names else draft.source.name}"


def _identity(draft: Draft, host: Host, *, secret_file: Path | None, holder: str) -> _Identity:
    values = _values(draft.table)
    notes: dict[tuple[str, str], str] = {}
    encoded = ("rabbitmq", "password_percent_encoded")
    secret = values.pop(("rabbitmq", "password"), None)
    if secret is not None:
        raw = secret.reveal()
        del values[encoded]
        if secret_file is None:
            values["rabbitmq", "password"] = percent_decode(raw)
            notes["rabbitmq", "password"] = "keep this file for the daemon's user alone: chmod 600"
        else:
            values["rabbitmq", "password_file"] = str(secret_file)
            notes["rabbitmq", "password_file"] = (
                f"DO THIS: write {holder} into this file as it is there, then chmod 600 it"
            )
            if percent_decode(raw) != raw:
                values[encoded] = True
    if encoded in values:
        notes[encoded] = "the original builder needs it so; remove this line once the file has the plain password"
    root = draft.table.checkout.root
    if root is not None and is_personal(resolved(root), host):
        values["checkout", "allow_home"] = True
        notes["checkout", "allow_home"] = "better: move the root; its path shows in public build logs"
    return _Identity(draft.table.name or "", dict(_in_order(values)), notes)


def _values(table: IdentityTable) -> Values:
    """What an identity says, by section and key."""
    sections = {field.name: getattr(table, field.name) for field in attrs.fields(IdentityTable)}
    return {
        (section, key): value
        for section, inner in sections.items()
        if isinstance(inner, Table)
        for key, value in said(inner).items()
    }


def _in_order(values: Values) -> Iterator[tuple[tuple[str, str], Any]]:
    """``values`` in the order of the schema."""
    for section in attrs.fields(IdentityTable):
        if isinstance(section.default, Table):
            for key in attrs.fields(type(section.default)):
                if (section.name, key.name) in values:
                    yield (section.name, key.name), values[section.name, key.name]


def _head(layers: Sequence[OriginalLayer], problems: Problems, *, inline_secrets: bool) -> str:
    names = ", ".join(layer.source.name for layer in layers)
    lines = [
        f"Converted from the original builder's configuration: {names}.",
        "Look for DO THIS, then try it: ofborg-async check -c FILE",
    ]
    if inline_secrets:
        lines.append("This text holds passwords: store it with mode 0600, or it is refused.")
    lines.extend(f"Seen on the way: {warning}" for warning in problems.warnings)
    return "\n".join(f"# {line}" for line in lines)


def _parts(identities: Sequence[_Identity]) -> Iterator[str]:
    """[defaults] with what all identities have in common, then each identity with the rest."""
    explained: set[tuple[str, str]] = set()
    common: Values = {}
    if len(identities) > 1:
        first = identities[0].values
        common = {
            path: value
            for path, value in first.items()
            if all(path in other.values and other.values[path] == value for other in identities)
        }
        notes = dict(identities[0].notes)
        if ("checkout", "root") in common:
            notes["checkout", "root"] = "DO THIS: give each identity a root of its own; a shared one is refused"
        yield "\n".join(["[defaults]", *_lines(common, notes, explained)])
    for identity in identities:
        own = {path: value for path, value in identity.values.items() if path not in common}
        yield "\n".join(
            ["[[identity]]", f"name = {toml_value(identity.name)}", *_lines(own, identity.notes, explained)]
        )


def _lines(values: Values, notes: Mapping[tuple[str, str], str], explained: set[tuple[str, str]]) -> Iterator[str]:
    """A line for each key; what a key means is said above its first use."""
    docs = {
        (section.name, key.name): key.metadata["doc"]
        for section in attrs.fields(IdentityTable)
        if isinstance(section.default, Table)
        for key in attrs.fields(type(section.default))
    }
    for path, value in values.items():
        if path not in explained:
            explained.add(path)
            yield f"# {docs[path].replace('`', '').split('. ')[0]}"
        if path in notes:
            yield f"# {notes[path]}"
        yield f"{path[0]}.{path[1]} = {toml_value(value, single=path == ('rabbitmq', 'host'))}"


def toml_value(value: Any, *, single: bool = False) -> str:
    """``value`` as TOML; a list of one as the value alone if ``single``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        if single and len(value) == 1:
            return toml_value(value[0])
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_value(name)} = {toml_value(item)}" for name, item in value.items()) + " }"
    # A JSON text is a basic TOML string but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
