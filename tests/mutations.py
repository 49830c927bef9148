"""Job messages as the recordings have them, damaged: what arrives when somebody's feeder has a fault or an aim."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

RECORDINGS = Path(__file__).parent / "data" / "recordings"
JOBS: list[dict[str, Any]] = [
    case["job"] for path in sorted(RECORDINGS.glob("*.json")) for case in json.loads(path.read_text()).values()
]
SWAPS: list[Any] = [None, True, 0, -1, 1.5, 2**64, 10**400, "", "\0", "\ud800", "x" * 300, [], {}, [[]], ["a", None]]


def paths_of(document: Any) -> list[tuple[Any, ...]]:
    """The path of every value inside a document, which may be deeper than calls can be nested."""
    found: list[tuple[Any, ...]] = []
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), document)]
    while waiting:
        here, value = waiting.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        inside = [((*here, key), inner) for key, inner in items]
        found += [path for path, _ in inside]
        waiting += inside
    return found


def damaged(job: dict[str, Any], random: Random) -> bytes:
    """A job's bytes after one to three faults in the document, the text or the bytes."""
    document: Any = json.loads(json.dumps(job))
    for _ in range(random.randint(0, 2)):
        paths = paths_of(document)
        *parents, last = random.choice(paths)
        holder = document
        for part in parents:
            holder = holder[part]
        match random.choice(["swap", "remove", "wrap", "nest"]):
            case "swap":
                # A copy: the next fault may be inside, and one that put it into itself would have no end.
                holder[last] = deepcopy(random.choice(SWAPS))
            case "remove":
                del holder[last]
            case "wrap":
                holder[last] = random.choice([[holder[last]], {"x": holder[last]}, str(holder[last])])
            case _:
                for _ in range(random.choice([3, 40])):
                    holder[last] = [holder[last]]
        if not paths_of(document):
            break
    body = json.dumps(document).encode()
    match random.choice(["none", "flip", "cut", "twice", "duplicate", "number"]):
        case "flip":
            at = random.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ (1 << random.randrange(8))]) + body[at + 1 :]
        case "cut":
            body = body[: random.randrange(len(body))]
        case "twice":
            body += body
        case "duplicate":
            body = body.replace(b"{", b'{"request_id": "other", "request_id": "other", ', 1)
        case "number":
            body = body.replace(b": 1", b": " + b"9" * random.choice([30, 5000]), 1)
        case _:
            pass
    return body
