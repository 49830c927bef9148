"""Checks for annotations of the schema: each says what is wrong with a value and what would be right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from attrs import frozen

from ofborg_async.config.addresses import parse_broker_address, parse_listen_address
from ofborg_async.config.strict import Rejected, nearest

KNOWN_SYSTEMS = (
    "aarch64-darwin",
    "aarch64-linux",
    "armv6l-linux",
    "armv7l-linux",
    "i686-linux",
    "powerpc64le-linux",
    "riscv64-linux",
    "x86_64-darwin",
    "x86_64-freebsd",
    "x86_64-linux",
)
SYSTEM = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)+")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_KEYS = {
    "NIX_REMOTE": "use nix.remote",
    "GC_INITIAL_HEAP_SIZE": "use nix.initial_heap_size",
    "NIX_PATH": "it names the work tree of each job and cannot be set",
}


@frozen
class Between:
    """A number from ``low`` to ``high``, both included; ``why`` explains an unusual bound."""

    low: float
    high: float
    why: str = ""

    def __call__(self, value: float) -> float:
        """The value. Raises Rejected."""
        if not self.low <= value <= self.high:
            bound = f"at least {self.low:.15g}" if value < self.low else f"at most {self.high:.15g}"
            raise Rejected(f"must be {bound}, is {value:.15g}" + (f" ({self.why})" if self.why else ""))
        return value


@frozen
class Choice:
    """One of a few texts."""

    allowed: tuple[str, ...]

    def __call__(self, value: str) -> str:
        """The value. Raises Rejected."""
        if value not in self.allowed:
            near = nearest(value, self.allowed)
            hint = f"; did you mean {near!r}?" if near else ""
            raise Rejected(f"must be one of {', '.join(self.allowed)}, is {value!r}{hint}")
        return value


@frozen
class Choices:
    """A list of texts, each one of a few, not empty and none twice."""

    allowed: tuple[str, ...]

    def __call__(self, value: tuple[str, ...]) -> tuple[str, ...]:
        """The value. Raises Rejected."""
        one = Choice(self.allowed)
        for item in value:
            one(item)
        return _distinct(value)


@frozen
class Text:
    """A text of 1 to ``max_bytes`` bytes on one line, without the characters of ``forbidden``."""

    max_bytes: int = 255
    forbidden: str = ""

    def __call__(self, value: str) -> str:
        """The value. Raises Rejected."""
        if not value:
            raise Rejected("is empty")
        size = len(value.encode())
        if size > self.max_bytes:
            raise Rejected(f"is {size} bytes long; at most {self.max_bytes} are allowed")
        if any(ord(char) < 0x20 or ord(char) == 0x7F for char in value):
            raise Rejected("contains a line break or another control character; take it out")
        for char in self.forbidden:
            if char in value:
                raise Rejected(f"must not contain {char!r}")
        return value


@frozen
class PathComponent:
    """A name that is used as a folder's name; a colon would end it in NIX_PATH."""

    def __call__(self, value: str) -> str:
        """The value. Raises Rejected."""
        Text(max_bytes=200, forbidden="/:")(value)
        if value in {".", ".."} or value != value.strip():
            raise Rejected('is used as a folder\'s name: it must not be "." or "..", nor begin or end with a space')
        return value


@frozen
class Systems:
    """A list of nix systems, not empty and none twice."""

    def __call__(self, value: tuple[str, ...]) -> tuple[str, ...]:
        """The value. Raises Rejected."""
        for item in value:
            if not SYSTEM.fullmatch(item):
                near = nearest(item, KNOWN_SYSTEMS)
                raise Rejected(f"{item!r} is no nix system" + (f"; did you mean {near!r}?" if near else ""))
        return _distinct(value)


@frozen
class HeapSize:
    """A size as the Boehm collector reads it from GC_INITIAL_HEAP_SIZE: a number and perhaps k, m, g or t."""

    def __call__(self, value: str) -> str:
        """The value. Raises Rejected."""
        if not re.fullmatch(r"[0-9]{1,18}[kKmMgGtT]?", value):
            raise Rejected(f'must be a number with k, m or g behind it, such as "4g", is {value!r}')
        return value


@frozen
class Variables:
    """Environment variables for nix: usable names, and none that has a key of its own."""

    def __call__(self, value: Mapping[str, str]) -> Mapping[str, str]:
        """The value. Raises Rejected, with one part for each wrong name."""
        parts = []
        for name in value:
            if name in OWN_KEYS:
                parts.append(((name,), OWN_KEYS[name]))
            elif not VARIABLE.fullmatch(name):
                parts.append(((name,), "is no name of an environment variable (letters, digits, _)"))
        if parts:
            raise Rejected("", parts=tuple(parts))
        return value


@frozen
class BrokerHosts:
    """Broker addresses, not empty: each ``h``, ``h:port`` or ``[v6]:port``. Whether ssl is used is not known here."""

    def __call__(self, value: tuple[str, ...]) -> tuple[str, ...]:
        """The value. Raises Rejected."""
        for item in value:
            try:
                parse_broker_address(item)
            except ValueError as error:
                raise Rejected(str(error)) from None
        if not value:
            raise Rejected("is an empty list; name at least one broker")
        return value


@frozen
class ListenAddress:
    """A loopback address with a port."""

    def __call__(self, value: str) -> str:
        """The value. Raises Rejected."""
        try:
            parse_listen_address(value)
        except ValueError as error:
            raise Rejected(str(error)) from None
        return value


@frozen
class PercentDecoded:
    """Percent escapes are decoded where there are any: the original put these values into a URL as they were."""

    def __call__(self, value: str) -> str:
        """The decoded value; escapes that decode to no text stay as they are."""
        return percent_decode(value)


def percent_decode(value: str) -> str:
    """``value`` with its percent escapes decoded, leniently: a lone ``%`` stays, and so does all if it is no UTF-8."""
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise Rejected("is an empty list; name at least one")
    twice = sorted({item for item in value if value.count(item) > 1})
    if twice:
        raise Rejected(f"names {', '.join(twice)} twice")
    return value
