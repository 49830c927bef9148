"""Strict structuring: a parsed document becomes attrs values, or every fault in it with its path.

cattrs on its own turns 3.7 into 3, "false" into True and a text into a tuple of letters; the hooks here accept a
value only as it is written. Checks stand in the annotations: ``Annotated[int, Between(1, 10)]``. No message shows a
text that was written, except where a check of a key that is no secret says so: a secret may stand in a wrong place.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Protocol, TypeVar, get_args, get_origin

import attrs
from attrs import frozen
from cattrs import Converter
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from ofborg_async.model.identity import Secret

T = TypeVar("T")
KeyPath = tuple[str | int, ...]

INTEGER_LIMIT = 2**63


class Rejected(ValueError):  # noqa: N818 - never leaves this package; becomes a ConfigFault
    """A value that is no good. ``parts`` are (path below the value, message), one for each thing wrong in it."""

    def __init__(self, message: str, *, parts: tuple[tuple[KeyPath, str], ...] = ()) -> None:
        self.parts = parts or (((), message),)
        super().__init__(message)


@frozen
class Rejection:
    """One fault of a document: where it is and what to do about it."""

    path: KeyPath
    message: str


class Check(Protocol):
    """A mark in an annotation: looks at a structured value, returns it (changed or not) or raises Rejected."""

    def __call__(self, value: Any) -> Any:
        """The value to use. Raises Rejected."""
        ...


class OneOrMany:
    """A mark in an annotation of a tuple: a single value may stand for a list of one."""

    def __call__(self, value: Any) -> Any:
        """The value as it is: the work is done before it is structured."""
        return value


@frozen
class Structured:
    """What was read of a table: ``value`` without its faulty keys, and the faults, each with its path."""

    value: Any
    rejections: tuple[Rejection, ...]


def kind_of(value: object) -> str:
    """The kind of a parsed value in a person's words: for messages, which never show the value itself."""
    names = {bool: "true or false", int: "a whole number", float: "a number with a fraction", str: "a text"}
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return names.get(type(value), "a date or time")


def nearest(name: str, known: tuple[str, ...]) -> str | None:
    """The known name that ``name`` was probably meant to be."""
    lowered = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def structure(table: type, raw: Mapping[str, Any], *, base: Path, tilde_is_fault: bool = True) -> Structured:
    """Structure ``raw`` as the attrs class ``table``; relative paths count from ``base``.

    Faulty keys are taken out and the rest is structured again, so that what comes later can find its faults too.
    """
    converter = _converter(tilde_is_fault)
    rejections: list[Rejection] = []
    while True:  # each turn takes at least one key out
        try:
            return Structured(_anchored(converter.structure(raw, table), base), tuple(rejections))
        except Exception as error:  # noqa: BLE001 - told apart in _flatten, which re-raises strangers
            found = _flatten(error, ())
        rejections.extend(found)
        raw = _without(raw, {rejection.path for rejection in found}, ())


def _anchored(value: Any, base: Path) -> Any:
    """A structured value with its relative paths below ``base``."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, tuple):
        return tuple(_anchored(item, base) for item in value)
    if attrs.has(type(value)) and not isinstance(value, Secret):
        fields = attrs.fields(type(value))
        return type(value)(**{field.name: _anchored(getattr(value, field.name), base) for field in fields})
    return value


def _without(value: Any, faulty: set[KeyPath], here: KeyPath) -> Any:
    """A copy of a document without what stands at the ``faulty`` paths."""
    if isinstance(value, dict):
        return {k: _without(v, faulty, (*here, k)) for k, v in value.items() if (*here, k) not in faulty}
    if isinstance(value, list):
        # Only items of lists of tables have a path of their own; the place stays, for the paths of what follows.
        return [{} if (*here, i) in faulty else _without(v, faulty, (*here, i)) for i, v in enumerate(value)]
    return value


def _flatten(error: BaseException, path: KeyPath) -> list[Rejection]:
    """Every fault inside what cattrs raised, with its path from the top of the document."""
    if isinstance(error, ClassValidationError):
        inner, others = error.group_exceptions()
        found = [fault for sub, note in inner for fault in _flatten(sub, (*path, note.name))]
        return found + [fault for sub in others for fault in _flatten(sub, path)]
    if isinstance(error, ForbiddenExtraKeysError):
        known = tuple(field.name for field in attrs.fields(error.cl))
        return [
            Rejection((*path, name), unknown_key(name, known, error.cl))
            for name in sorted(map(str, error.extra_fields))
        ]
    if isinstance(error, Rejected):
        return [Rejection((*path, *below), message) for below, message in error.parts]
    raise error


def unknown_key(name: str, known: tuple[str, ...], table: type) -> str:
    """The message for a key that the schema does not know: the nearest one, or all there are."""
    elsewhere: Mapping[str, str] = getattr(table, "ELSEWHERE", {})
    near = elsewhere.get(name) or nearest(name, known)
    if near is not None:
        return f"unknown key; did you mean {near}?"
    return f"unknown key; known here are {', '.join(known)}"


@functools.cache
def _converter(tilde_is_fault: bool) -> Converter:
    """A converter whose every hook is strict; made once, for it compiles a function for each table."""
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook(bool, _structure_bool)
    converter.register_structure_hook(int, _structure_int)
    converter.register_structure_hook(float, _structure_float)
    converter.register_structure_hook(str, _structure_str)

    def structure_path(value: Any, _: Any) -> Path:
        text = _structure_str(value, str)
        if not text:
            raise Rejected("is empty; write an absolute path")
        if tilde_is_fault and text.startswith("~"):
            raise Rejected('"~" is not expanded; write the whole path')
        return Path(text)

    converter.register_structure_hook(Path, structure_path)
    converter.register_structure_hook_factory(attrs.has, lambda cls: _table_hook(converter, cls))
    converter.register_structure_hook_factory(_has_origin(tuple), lambda t: _tuple_hook(converter, t))
    converter.register_structure_hook_factory(
        _has_origin(Mapping), lambda _: lambda value, _type: _structure_texts(value)
    )
    converter.register_structure_hook_factory(_has_origin(Annotated), lambda t: _checked_hook(converter, t))
    # Last, because attrs.has is true for Secret as well, and the newest hook is asked first.
    converter.register_structure_hook_factory(
        lambda t: t is Secret, lambda _: lambda value, _type: Secret(_structure_str(value, str))
    )
    return converter


def _has_origin(origin: Any) -> Callable[[Any], bool]:
    return lambda type_: get_origin(type_) is origin


def _table_hook(converter: Converter, cls: type[T]) -> Callable[[Any, Any], T]:
    inner = make_dict_structure_fn(cls, converter)

    def hook(value: Any, type_: Any) -> T:
        if not isinstance(value, dict):
            raise Rejected(f"expected a table, found {kind_of(value)}")
        return inner(value, type_)

    return hook


def _tuple_hook(converter: Converter, type_: Any) -> Callable[[Any, Any], tuple[Any, ...]]:
    item_type = get_args(type_)[0]
    tables = attrs.has(item_type)

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            hint = "; write [[...]], with two brackets, for each" if tables and isinstance(value, dict) else ""
            raise Rejected(f"expected a list, found {kind_of(value)}{hint}")
        items: list[Any] = []
        faults: list[tuple[KeyPath, str]] = []
        for index, item in enumerate(value):
            try:
                items.append(converter.structure(item, item_type))
            except Exception as error:  # noqa: BLE001 - told apart in _flatten, which re-raises strangers
                faults.extend((found.path, found.message) for found in _flatten(error, (index,)))
        if faults and not tables:  # a list with a wrong item is wrong as a whole: its path is the list's
            faults = [((), f"item {int(path[0]) + 1}: {message}") for path, message in faults]
        if faults:
            raise Rejected("", parts=tuple(faults))
        return tuple(items)

    return hook


def _checked_hook(converter: Converter, type_: Any) -> Callable[[Any, Any], Any]:
    inner_type, *marks = get_args(type_)
    inner = converter.get_structure_hook(inner_type)
    one_or_many = any(isinstance(mark, OneOrMany) for mark in marks)
    checks: list[Check] = list(marks)

    def hook(value: Any, _: Any) -> Any:
        if one_or_many and isinstance(value, str):
            value = [value]
        result = inner(value, inner_type)
        for check in checks:
            result = check(result)
        return result

    return hook


def _structure_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise Rejected(f"expected true or false (without quotes), found {kind_of(value)}")
    return value


def _structure_int(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Rejected(f"expected a whole number (without quotes), found {kind_of(value)}")
    if not -INTEGER_LIMIT <= value < INTEGER_LIMIT:
        raise Rejected("the number does not fit into 64 bits")
    return value


def _structure_float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Rejected(f"expected a number (without quotes), found {kind_of(value)}")
    if not abs(value) < INTEGER_LIMIT or not math.isfinite(value):
        raise Rejected("expected a finite number of ordinary size")
    return float(value)


def _structure_str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise Rejected(f"expected a text in quotes, found {kind_of(value)}")
    if "\0" in value:
        raise Rejected("contains a NUL character; take it out")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise Rejected("contains half of a surrogate pair, which is no character; take it out")
    return value


def _structure_texts(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise Rejected(f"expected a table of texts, found {kind_of(value)}")
    texts: dict[str, str] = {}
    faults: list[tuple[KeyPath, str]] = []
    for name, text in value.items():
        try:
            texts[_structure_str(name, str)] = _structure_str(text, str)
        except Rejected as error:
            faults.append(((name,), str(error)))
    if faults:
        raise Rejected("", parts=tuple(faults))
    return MappingProxyType(texts)
