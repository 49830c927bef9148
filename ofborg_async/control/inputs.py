"""What a request says, strictly: every query parameter and body field is declared, parsed and bounded here."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from attrs import frozen

from ofborg_async.control.problems import RequestError, nearest

MAX_TEXT_CHARACTERS = 500
MAX_NAMES = 1000
MAX_SECONDS = 366 * 24 * 3600.0
MAX_WHOLE = 1000


class Kind(enum.Enum):
    """The kinds of values; openapi.py has the JSON schema of each."""

    TEXT = enum.auto()
    NAMES = enum.auto()
    WHOLE = enum.auto()
    SECONDS = enum.auto()
    FLAG = enum.auto()
    MOMENT = enum.auto()


@frozen
class Parameter:
    """One query parameter or field of a body. All may be left out, then their value is None (NAMES: empty)."""

    name: str
    kind: Kind
    summary: str


Inputs = Mapping[str, Any]
"""Parsed values by name: str, tuple of str, int, float, bool, aware datetime, or None."""


def read_query(query: str, declared: Sequence[Parameter]) -> Inputs:
    """Parse a query string. Raises RequestError (400) that names the parameter."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_NAMES, errors="strict")
    except ValueError as error:
        raise _bad(f"the query is malformed: {error}") from None
    _refuse_unknown([name for name, _ in pairs], declared, "query parameter")
    given: dict[str, Any] = {}
    for parameter in declared:
        values = [value for name, value in pairs if name == parameter.name]
        if parameter.kind is Kind.NAMES:
            given[parameter.name] = values
        elif len(values) > 1:
            raise _bad(f"{parameter.name} is given more than once")
        elif values:
            given[parameter.name] = _from_text(parameter, values[0])
    return _checked(given, declared)


def read_body(body: bytes, declared: Sequence[Parameter]) -> Inputs:
    """Parse a JSON body; an empty one is ``{}``. Raises RequestError (400) that names the field."""
    try:
        given = json.loads(body) if body else {}
    except (ValueError, RecursionError) as error:
        raise _bad(f"the body is not JSON: {type(error).__name__}") from None
    if not isinstance(given, dict):
        raise _bad("the body is not a JSON object")
    _refuse_unknown(list(given), declared, "field")
    return _checked(given, declared)


def _from_text(parameter: Parameter, text: str) -> Any:
    try:
        if parameter.kind is Kind.WHOLE:
            return int(text) if len(text) < 20 else text
        if parameter.kind is Kind.SECONDS:
            return float(text)
    except ValueError:
        return text
    if parameter.kind is Kind.FLAG:
        return {"true": True, "1": True, "false": False, "0": False}.get(text, text)
    return text


def _checked(given: Mapping[str, Any], declared: Sequence[Parameter]) -> Inputs:
    return {parameter.name: _check(parameter, given.get(parameter.name)) for parameter in declared}


def _check(parameter: Parameter, value: Any) -> Any:  # noqa: PLR0911 - one return a kind reads best
    if value is None:
        return () if parameter.kind is Kind.NAMES else None
    match parameter.kind, value:
        case Kind.TEXT, str() if _printable(value):
            return value
        case Kind.NAMES, list() if len(value) <= MAX_NAMES and all(isinstance(v, str) and _printable(v) for v in value):
            return tuple(value)
        case Kind.FLAG, bool():
            return value
        case Kind.WHOLE, int() if not isinstance(value, bool) and 1 <= value <= MAX_WHOLE:
            return value
        case Kind.SECONDS, int() | float() if not isinstance(value, bool) and _in_range(value):
            return float(value)
        case Kind.MOMENT, str() if (moment := _moment(value)) is not None:
            return moment
    raise _bad(f"{parameter.name} is not {_WANTED[parameter.kind]}")


_WANTED = {
    Kind.TEXT: f"a text of at most {MAX_TEXT_CHARACTERS} printable characters",
    Kind.NAMES: "a list of names",
    Kind.WHOLE: f"a whole number from 1 to {MAX_WHOLE}",
    Kind.SECONDS: f"a number of seconds from 0 to {MAX_SECONDS:g}",
    Kind.FLAG: "true or false",
    Kind.MOMENT: "a date and time of RFC 3339 with its offset",
}


def _printable(text: str) -> bool:
    return len(text) <= MAX_TEXT_CHARACTERS and text.isprintable()


def _in_range(number: float) -> bool:
    return math.isfinite(number) and 0 <= number <= MAX_SECONDS


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _refuse_unknown(names: Sequence[str], declared: Sequence[Parameter], what: str) -> None:
    known = [parameter.name for parameter in declared]
    for name in names:
        if name not in known:
            close = nearest(name, known)
            raise RequestError(
                HTTPStatus.BAD_REQUEST,
                f"there is no {what} {name[:100]!a} here",
                remedy=f"did you mean {close}?" if close else f"known are: {', '.join(known) or 'none'}",
            )


def _bad(detail: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, detail)
