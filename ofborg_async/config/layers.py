"""Layers of a configuration over each other: what an upper one says replaces what a lower one says, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
from attrs import frozen

from ofborg_async.config.problems import Place, Source
from ofborg_async.config.schema import IdentityTable, Table
from ofborg_async.config.strict import KeyPath

T = TypeVar("T", bound=Table)


def overlay(lower: T, upper: T) -> T:
    """``lower`` with everything that ``upper`` says. Tables merge deeply; lists and single values are replaced.

    Keys of one group (the ways to say a password) are replaced together, with what belongs to the group.
    """
    hidden = {
        field.metadata["group"]
        for field in attrs.fields(type(upper))
        if field.metadata.get("group") and getattr(upper, field.name) is not None
    }
    merged: dict[str, Any] = {}
    for field in attrs.fields(type(lower)):
        below, above = getattr(lower, field.name), getattr(upper, field.name)
        if isinstance(below, Table) and isinstance(above, Table):
            merged[field.name] = overlay(below, above)
        elif hidden.intersection((field.metadata.get("group"), field.metadata.get("with_group"))):
            merged[field.name] = above
        elif isinstance(below, Mapping) and isinstance(above, Mapping):
            merged[field.name] = MappingProxyType({**below, **above})
        else:
            merged[field.name] = below if above is None else above
    return type(lower)(**merged)


def said(table: Table) -> dict[str, Any]:
    """The keys that ``table`` says itself, without its inner tables."""
    values = {field.name: getattr(table, field.name) for field in attrs.fields(type(table))}
    return {name: value for name, value in values.items() if value is not None and not isinstance(value, Table)}


@frozen
class Draft:
    """An identity as its files say it, before defaults.

    ``prefix`` is where it stands in ``source``; ``renamed`` gives the original's names of keys, for messages;
    ``faulty`` are keys of the table that were said, but wrongly, so that they are not called missing as well.
    """

    table: IdentityTable
    source: Source
    prefix: KeyPath = ()
    is_json: bool = False
    renamed: Mapping[KeyPath, KeyPath] = MappingProxyType({})
    faulty: frozenset[KeyPath] = frozenset()

    def place(self, *path: str) -> Place:
        """Where the key ``path`` of this identity is, or would be."""
        return self.source.place(*self.prefix, *self.renamed.get(path, path))

    def is_faulty(self, path: KeyPath) -> bool:
        """Whether ``path``, or a table around it, was said wrongly: that has been told already."""
        return any(path[:length] in self.faulty for length in range(len(path) + 1))
