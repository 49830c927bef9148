"""A build job from bytes, strictly (wire document, "BuildJob (in)"; promises, "Input")."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ofborg_async.errors import UndecodableError
from ofborg_async.model.job import DEFAULT_LOGS, DEFAULT_STATUSREPORT, Address, BuildJob, PullRequest, Repo, Subset

MAX_DEPTH = 32
"""Nesting that no honest job comes near; deeper bodies would exhaust the parser's stack."""

MAX_SHORTSTR_BYTES = 255
"""AMQP's short string: exchange names and routing keys."""

_U64_MAX = 2**64 - 1
_SURROGATE = re.compile("[\ud800-\udfff]")


def decode_job(body: bytes, *, max_bytes: int) -> BuildJob:
    """Read a build job. Unknown fields are ignored. Raises UndecodableError with a reason that names the key."""
    if len(body) > max_bytes:
        raise UndecodableError(f"the body has {len(body)} bytes, more than the limit of {max_bytes}")
    document = _object(_parse(body), "the message")
    repo = _object(_required(document, "repo", ""), "repo")
    pull = _object(_required(document, "pr", ""), "pr")
    return BuildJob(
        repo=Repo(*(_text(_required(repo, key, "repo."), f"repo.{key}") for key in _REPO_KEYS)),
        pr=PullRequest(
            number=_u64(_required(pull, "number", "pr."), "pr.number"),
            head_sha=_text(_required(pull, "head_sha", "pr."), "pr.head_sha"),
            target_branch=_optional_text(pull.get("target_branch"), "pr.target_branch"),
        ),
        attrs=_texts(_required(document, "attrs", ""), "attrs"),
        request_id=_text(_required(document, "request_id", ""), "request_id"),
        subset=_subset(document.get("subset")),
        logs=_address(document.get("logs"), "logs", DEFAULT_LOGS),
        statusreport=_address(document.get("statusreport"), "statusreport", DEFAULT_STATUSREPORT),
    )


_REPO_KEYS = ("owner", "name", "full_name", "clone_url")


def _parse(body: bytes) -> Any:
    if not body:
        raise UndecodableError("the body is empty")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UndecodableError(f"the body is not UTF-8: byte {error.start}") from None
    _check_depth(text)
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_bounded_int)
    except json.JSONDecodeError as error:
        raise UndecodableError(f"the body is not JSON: {error.msg} at character {error.pos}") from None


_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


def _check_depth(text: str) -> None:
    depth = 0
    for token in _BRACKETS.finditer(text):
        char = text[token.start()]
        if char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise UndecodableError(f"the body nests deeper than {MAX_DEPTH} levels")
        elif char in "]}":
            depth -= 1


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UndecodableError(f"the key {_quoted(twice)} occurs twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise UndecodableError(f"{name} is not JSON")


def _bounded_int(digits: str) -> int:
    if len(digits) > 20:
        raise UndecodableError(f"a number has {len(digits)} digits")
    return int(digits)


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:60] + "...")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UndecodableError(f"{where} is {_kind(value)}, not an object")
    return value


def _required(document: dict[str, Any], key: str, prefix: str) -> Any:
    if key not in document:
        raise UndecodableError(f"{prefix}{key} is missing")
    return document[key]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UndecodableError(f"{where} is {_kind(value)}, not a string")
    if _SURROGATE.search(value):
        raise UndecodableError(f"{where} has a lone surrogate")
    return value


def _optional_text(value: Any, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UndecodableError(f"{where} is {_kind(value)}, not a list")
    return tuple(_text(item, f"{where}[{index}]") for index, item in enumerate(value))


def _u64(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UndecodableError(f"{where} is {_kind(value)}, not a whole number")
    if not 0 <= value <= _U64_MAX:
        raise UndecodableError(f"{where} is out of range")
    return value


def _subset(value: Any) -> Subset | None:
    if value is None:
        return None
    try:
        return Subset(_text(value, "subset"))
    except ValueError:
        raise UndecodableError(f"subset is {_quoted(value)}; known are Nixpkgs and NixOS") from None


def _address(value: Any, where: str, default: Address) -> Address:
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != 2:
        raise UndecodableError(f"{where} is not a pair of exchange and routing key")
    halves = [_optional_text(half, f"{where}[{index}]") or "" for index, half in enumerate(value)]
    for index, half in enumerate(halves):
        if len(half.encode()) > MAX_SHORTSTR_BYTES:
            raise UndecodableError(f"{where}[{index}] has more than {MAX_SHORTSTR_BYTES} bytes")
    return Address(*halves)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]
