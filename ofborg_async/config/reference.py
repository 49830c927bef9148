"""The tables of keys in docs/configuration.md, written from the schema.

``python -m ofborg_async.config.reference docs/configuration.md`` brings them up to date; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import attrs

from ofborg_async.config.checks import Between
from ofborg_async.config.environment import variables
from ofborg_async.config.schema import YEAR_SECONDS, DaemonTable, Hosts, IdentityTable, Table
from ofborg_async.model.identity import (
    BrokerSettings,
    DaemonSettings,
    IdentitySettings,
    LimitSettings,
    NixSettings,
    Secret,
)

MODELS: Mapping[str, type[attrs.AttrsInstance]] = {
    "daemon": DaemonSettings,
    "runner": IdentitySettings,
    "checkout": IdentitySettings,
    "git": IdentitySettings,
    "nix": NixSettings,
    "rabbitmq": BrokerSettings,
    "limits": LimitSettings,
}
KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", Secret: "text"}

BEGIN = "<!-- keys: written by `python -m ofborg_async.config.reference docs/configuration.md` -->"
END = "<!-- end of keys -->"


def key_tables() -> str:
    """Every key with its meaning, default and environment variable, as Markdown."""
    parts = ["## `[daemon]`\n\n" + _table("daemon", DaemonTable)]
    parts.append(
        "## `[[identity]]` and `[defaults]`\n\n`name` (text, required, only in `[[identity]]`): the public name on the "
        "wire and in results. It is a folder's name as well, so no `/` and no `:`.\n"
    )
    for section in attrs.fields(IdentityTable):
        if isinstance(section.default, Table):
            table = type(section.default)
            parts.append(f"### `{section.name}`\n\n{table.__doc__}\n\n{_table(section.name, table)}")
    return "\n".join(parts)


def with_key_tables(document: str) -> str:
    """``document`` with the tables as they are now between its two marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{key_tables()}\n{END}{after}"


def _table(section: str, table: type[Table]) -> str:
    rows = ["| key | value | default | environment |", "|---|---|---|---|"]
    rows.extend(_rows(section, table))
    return "\n".join(rows) + "\n"


def _rows(section: str, table: type[Table]) -> Iterator[str]:
    names = {variable.path[-2:]: f"`{variable.name}`" for variable in variables()}
    for key in attrs.fields(attrs.resolve_types(table)):
        default = key.metadata["default"] or _model_default(section, key.name)
        environment = names.get((section, key.name), "")
        yield f"| `{key.name}` | {_kind(key.type)}: {key.metadata['doc']} | {default} | {environment} |"


def _kind(type_: Any) -> str:
    """The kind of a value in words, with its bounds."""
    inner = next(kind for kind in get_args(type_) if kind is not NoneType)
    marks: tuple[Any, ...] = ()
    if get_origin(inner) is Annotated:
        base, *marks_list = get_args(inner)
        marks = tuple(marks_list)
    else:
        base = inner
    if inner == Hosts:
        return "text or list"
    words = {tuple: "list of texts", Mapping: "table of texts"}.get(get_origin(base)) or KINDS[base]
    return words + "".join(_bounds(mark) for mark in marks if isinstance(mark, Between))


def _bounds(between: Between) -> str:
    """The bounds that a person could run into."""
    low = " above 0" if 0 < between.low < 1 else f" from {between.low:.15g}"
    return low + (f" to {between.high:.15g}" if between.high < YEAR_SECONDS else "")


def _model_default(section: str, name: str) -> str:
    """The default of the model's field for a key, as TOML writes it."""
    field_name = f"git_{name}" if section == "git" else name
    default = getattr(attrs.fields(MODELS[section]), field_name).default
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in default) + "]`"
    if isinstance(default, Mapping):
        return "`{}`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(with_key_tables(target.read_text()))
