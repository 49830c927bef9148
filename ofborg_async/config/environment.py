"""Defaults from the environment: OFBORG_ASYNC_<KEY> for [daemon], OFBORG_ASYNC_<SECTION>_<KEY> for [defaults]."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import attrs
from attrs import frozen

from ofborg_async.config.places import PREFIX
from ofborg_async.config.problems import Place, Problems, printable
from ofborg_async.config.schema import DaemonTable, Hosts, IdentityTable, Table
from ofborg_async.config.strict import nearest, structure
from ofborg_async.model.identity import Secret

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@frozen
class Variable:
    """One environment variable: the key it stands for and how its text becomes a document's value."""

    name: str
    path: tuple[str, ...]
    parse: Callable[[str], Any]


def variables() -> tuple[Variable, ...]:
    """Every key of [daemon] and [defaults] that is a single value, in the order of the schema."""
    found = [_variable(("daemon",), field) for field in attrs.fields(attrs.resolve_types(DaemonTable))]
    for section in attrs.fields(attrs.resolve_types(IdentityTable)):
        if isinstance(section.default, Table):
            table = attrs.resolve_types(type(section.default))
            found.extend(_variable(("defaults", section.name), field) for field in attrs.fields(table))
    return tuple(variable for variable in found if variable is not None)


def read_environment(
    environ: Mapping[str, str], problems: Problems, base: Path
) -> tuple[DaemonTable, IdentityTable, frozenset[tuple[str, ...]]]:
    """What the environment says for [daemon] and [defaults], and the paths it said wrongly (told in ``problems``).

    Relative paths count from ``base``.
    """
    known = {variable.name: variable for variable in variables()}
    raw: dict[str, dict[str, Any]] = {"daemon": {}, "defaults": {}}
    names: dict[tuple[str, ...], str] = {}
    faulty: set[tuple[str, ...]] = set()
    for name, text in environ.items():
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            _warn_unknown(name, tuple(known), problems)
            continue
        variable = known[name]
        names[variable.path] = name
        try:
            value = variable.parse(text)
        except ValueError as error:
            problems.fault(Place("environment", name), str(error))
            faulty.add(variable.path[1:])
            continue
        table = raw[variable.path[0]]
        for part in variable.path[1:-1]:
            table = table.setdefault(part, {})
        table[variable.path[-1]] = value
    tables = []
    for section, table_class in (("daemon", DaemonTable), ("defaults", IdentityTable)):
        structured = structure(table_class, raw[section], base=base)
        for rejection in structured.rejections:
            path = (section, *map(str, rejection.path))
            problems.fault(Place("environment", names[path]), rejection.message)
            faulty.add(path[1:])
        tables.append(structured.value)
    return tables[0], tables[1], frozenset(faulty)


def _warn_unknown(name: str, known: tuple[str, ...], problems: Problems) -> None:
    near = nearest(name, known)
    hint = f"; did you mean {near}?" if near else "; only single values of [daemon] and [defaults] can be set so"
    problems.warn(Place("environment", printable(name)), f"unknown variable, ignored{hint}")


def _variable(section: tuple[str, ...], field: attrs.Attribute[Any]) -> Variable | None:
    kind = _single(field.type)
    if kind is None:
        return None
    parse: Callable[[str], Any] = {bool: _parse_bool, int: _parse_int, float: _parse_float}.get(kind, str)
    path = (*section, field.name)
    name = PREFIX + "_".join(part for part in path if part not in {"daemon", "defaults"}).upper()
    return Variable(name, path, parse)


def _single(type_: Any) -> type | None:
    """The plain type of a field that is a single value; None for lists and tables."""
    inner = [kind for kind in get_args(type_) if kind is not NoneType] if NoneType in get_args(type_) else [type_]
    if inner == [Hosts]:
        return str
    kind = get_args(inner[0])[0] if get_origin(inner[0]) is Annotated else inner[0]
    return kind if kind in {bool, int, float, str, Path, Secret} else None


def _parse_bool(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError("expected 1 or 0, true or false")


def _parse_int(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,19}", text):
        raise ValueError("expected a whole number")
    return int(text)


def _parse_float(text: str) -> float:
    if not re.fullmatch(r"-?[0-9]{1,19}(\.[0-9]{1,19})?", text):
        raise ValueError("expected a number")
    return float(text)
