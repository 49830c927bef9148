"""Durations and moments as people write them on a command line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_UNITS = (86400, 3600, 60, 1)
_LONGEST_SECONDS = 366 * 86400


def parse_duration(text: str) -> float:
    """``2h``, ``30m``, ``90s``, ``1d`` or ``1h30m`` in seconds. Raises ValueError with one sentence."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text[:40]!r} is no duration; write for instance 90s, 30m, 2h, 1h30m or 1d")
    seconds = sum(int(count or 0) * unit for count, unit in zip(match.groups(), _UNITS, strict=True))
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ValueError(f"{text[:40]!r} is too {'long' if seconds else 'short'}; durations are 1s to 366d")
    return float(seconds)


def parse_since(text: str, now: datetime) -> datetime:
    """A duration before ``now``, or a date or time of ISO 8601 (local unless it has an offset). Raises ValueError."""
    try:
        return now - timedelta(seconds=parse_duration(text))
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text[:40]!r} is no time; write a duration (2h, 3d), a date (2025-06-01) or a time (2025-06-01T12:00Z)"
        ) from None
