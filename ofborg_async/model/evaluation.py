"""What is asked of nix for a job, and what came of instantiating it."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from ofborg_async.model.job import Subset


@frozen
class EvalRequest:
    """What to instantiate: ``attrs`` of the file that ``subset`` names, in ``tree``, for ``system``.

    ``tree`` is absolute and resolved; ``descriptors`` are open lock files to pass to every child.
    """

    tree: Path
    subset: Subset | None
    attrs: tuple[str, ...]
    system: str
    attempt_id: str
    descriptors: tuple[int, ...]


@frozen
class SkippedAttr:
    """An attr that cannot be instantiated and the lines that say why (without header and the empty line at the end)."""

    attr: str
    lines: tuple[bytes, ...]


@frozen
class Evaluation:
    """The outcome of instantiating. ``attempted`` and ``skipped`` keep the job's order and together are its attrs.

    ``derivations`` are arguments for nix-build (``/nix/store/X.drv!output``); None when the evaluation printed
    something, so the build must evaluate again in the original's form to print it too; empty when everything attempted
    instantiated to nothing.
    """

    attempted: tuple[str, ...]
    skipped: tuple[SkippedAttr, ...]
    derivations: tuple[str, ...] | None
