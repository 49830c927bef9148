"""Reading configuration files: bytes to plain values, with a clear fault for whatever is no document."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from attrs import field, frozen

from ofborg_async.config.positions import key_lines
from ofborg_async.config.problems import Place, Problems, Source, dotted, printable
from ofborg_async.config.strict import KeyPath, kind_of

FILE_BYTES_MOST = 8 * 1024 * 1024
DEPTH_MOST = 50


@frozen
class Document:
    """A parsed file: ``raw`` is its top-level table, ``digest`` a SHA-256 of its bytes."""

    source: Source
    is_json: bool
    raw: dict[str, Any] = field(repr=False)
    digest: str


def read_document(path: Path, problems: Problems) -> Document | None:
    """Read and parse one file. None when it is no document; what is wrong with it is then in ``problems``.

    TOML or JSON is decided by the suffix, else by the first character: only JSON begins with a brace.
    """
    place = Place(printable(str(path)))
    try:
        data, mode = read_bytes(path, FILE_BYTES_MOST)
    except (OSError, ValueError) as error:
        problems.fault(place, f"cannot be read: {explain_os_error(error)}")
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        problems.fault(place, f"is not UTF-8 text (byte {error.start}); save it as UTF-8")
        return None
    if text.startswith("\ufeff"):
        problems.fault(place, "begins with a byte order mark; save it as UTF-8 without one")
        return None
    is_json = _is_json(path, text)
    try:
        raw = _parse_json(text) if is_json else tomllib.loads(text)
        _check_depth(raw)
    except (ValueError, RecursionError) as error:
        problems.fault(place, _explain_syntax(error, text, is_json=is_json))
        return None
    if not isinstance(raw, dict):
        problems.fault(place, f"expected an object {{...}} at the top, found {kind_of(raw)}")
        return None
    lines = {} if is_json else dict(key_lines(text))
    label = dotted if is_json else _toml_label(raw)
    source = Source(path=path.absolute(), name=place.file, mode=mode, lines=lines, label=label)
    return Document(source=source, is_json=is_json, raw=raw, digest=digest(data))


def read_bytes(path: Path, limit_bytes: int) -> tuple[bytes, int]:
    """The content of a file and its permission bits. Raises OSError, ValueError (too large, a NUL in the path)."""
    with path.open("rb") as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ValueError(f"larger than {limit_bytes} bytes, which no such file needs to be")
    return data, mode


def digest(data: bytes) -> str:
    """What is remembered of a file's content, to notice that it changed."""
    return hashlib.sha256(data).hexdigest()


def explain_os_error(error: OSError | ValueError) -> str:
    """The cause in a sentence with its remedy, without the path (the message names it already)."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied; let the daemon's user read it (chown or chmod), or run this as that user"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _is_json(path: Path, text: str) -> bool:
    if path.suffix.lower() in {".json", ".toml"}:
        return path.suffix.lower() == ".json"
    return text.lstrip().startswith("{")


def _toml_label(raw: dict[str, Any]) -> Any:
    """Names the identity in a path in place of its number, where it has a usable name."""

    def label(path: KeyPath) -> str:
        if len(path) > 1 and path[0] == "identity" and isinstance(path[1], int):
            items = raw.get("identity")
            item = items[path[1]] if isinstance(items, list) and path[1] < len(items) else None
            name = item.get("name") if isinstance(item, dict) else None
            if isinstance(name, str) and name and len(name) <= 100:
                rest = dotted(path[2:])
                return f"identity[{printable(name)}]" + (f".{rest}" if rest else "")
        return dotted(path)

    return label


def _parse_json(text: str) -> Any:
    """JSON as the original's parser takes it: no duplicate keys, no NaN. Raises ValueError, RecursionError."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {printable(name)!r} stands twice in one object; remove one of them")
        result[name] = value
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number; write a number")


def _check_depth(value: Any) -> None:
    """Raises ValueError for a document nested deeper than any configuration is."""
    level = [value]
    for _ in range(DEPTH_MOST):
        level = [
            item
            for node in level
            if isinstance(node, (dict, list))
            for item in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise ValueError(f"is nested more than {DEPTH_MOST} levels deep")


def _explain_syntax(error: ValueError | RecursionError, text: str, *, is_json: bool) -> str:
    if isinstance(error, RecursionError):
        return f"is nested more than {DEPTH_MOST} levels deep"
    if isinstance(error, json.JSONDecodeError):
        line = text.split("\n")[error.lineno - 1].lstrip()
        hint = "; JSON has no comments: remove them" if line.startswith(("//", "/*", "#")) else ""
        hint = hint or ("; the file is empty" if not text.strip() else "")
        return f"is no valid JSON: {error.msg} (line {error.lineno}, column {error.colno}){hint}"
    return f"is no valid {'JSON' if is_json else 'TOML'}: {error}"
