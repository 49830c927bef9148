"""The daemon's own log on standard error: one line a record, for people or as JSON, with the context of its job.

What is bound once (``bind``) stands in every record of the task and its children: identity, system, attempt.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from ofborg_async.clock import rfc3339

_context: ContextVar[MappingProxyType[str, str]] = ContextVar("log_context", default=MappingProxyType({}))
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@contextmanager
def bind(**fields: str) -> Iterator[None]:
    """Add ``fields`` to every record logged inside."""
    token = _context.set(MappingProxyType({**_context.get(), **fields}))
    try:
        yield
    finally:
        _context.reset(token)


def _escape(text: str) -> str:
    # What others wrote must not move the cursor or forge a line.
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class HumanFormatter(logging.Formatter):
    """``2026-01-01T00:00:00.000Z INFO    message  identity=a attempt=b``; a traceback follows indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        moment = rfc3339(datetime.fromtimestamp(record.created, UTC))
        fields = "".join(f" {key}={_escape(value)}" for key, value in _context.get().items())
        text = f"{moment} {record.levelname:<7} {_escape(record.getMessage())}{' ' + fields if fields else ''}"
        if record.exc_info:
            text += "\n  " + self.formatException(record.exc_info).replace("\n", "\n  ")
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        document: dict[str, Any] = {
            "at": rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_context.get(),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


def configure(level: str, log_format: str) -> None:
    """Send records of ``level`` ("debug" to "error") and above to standard error, as "json" or for people."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
