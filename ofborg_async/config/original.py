"""The original builder's JSON, all three generations (wire document, "Configuration files of the original (JSON)").

1. ``rabbitmq.password`` in the file. 2. ``rabbitmq.password_file``; ``nix.system`` may be a list.
3. ``builder.rabbitmq`` in place of ``rabbitmq``; no ``feedback``.

What is not for a builder is accepted and left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import attrs
from attrs import field, frozen

from ofborg_async.config.checks import Between, BrokerHosts, HeapSize, PercentDecoded, Text
from ofborg_async.config.documents import Document
from ofborg_async.config.layers import Draft, overlay
from ofborg_async.config.problems import Place, Problems, Source
from ofborg_async.config.schema import (
    MOST,
    CheckoutTable,
    FeedbackTable,
    IdentityName,
    IdentityTable,
    NixTable,
    RabbitTable,
    RunnerTable,
    SystemNames,
    Table,
)
from ofborg_async.config.strict import KeyPath, OneOrMany, nearest, structure
from ofborg_async.model.identity import Secret

BUILD_TIMEOUT_SECONDS_LEAST = 1200
BrokerText = Annotated[str, PercentDecoded(), Text()]

# Sections of other components of the original, and keys that say nothing to a builder.
FOREIGN: Mapping[KeyPath, frozenset[str]] = {
    (): frozenset(
        {
            "evaluation_filter",
            "github",
            "github_app",
            "github_comment_filter",
            "github_comment_poster",
            "github_webhook_receiver",
            "hydra_evaluator",
            "log_api_config",
            "log_message_collector",
            "log_storage",
            "mass_rebuilder",
            "pusher",
            "stats",
            "tag_paths",
        }
    ),
    ("runner",): frozenset({"repos", "trusted_users", "disable_trusted_users", "known_users", "instance"}),
    ("nix",): frozenset({"list_cores", "list_chunk_size", "list_system"}),
}


@frozen
class OriginalRunner(Table):
    """``runner``."""

    identity: IdentityName | None = None
    build_all_jobs: bool | None = None


@frozen
class OriginalFeedback(Table):
    """``feedback``: generations 1 and 2."""

    full_logs: bool | None = None


@frozen
class OriginalCheckout(Table):
    """``checkout``."""

    root: Path | None = None


@frozen
class OriginalNix(Table):
    """``nix``; ``system`` is a text or a list."""

    system: Annotated[SystemNames, OneOrMany()] | None = None
    remote: str | None = None
    build_timeout_seconds: (
        Annotated[int, Between(BUILD_TIMEOUT_SECONDS_LEAST, MOST, "the original refuses less")] | None
    ) = None
    initial_heap_size: Annotated[str, HeapSize()] | None = None


@frozen
class OriginalRabbit(Table):
    """``rabbitmq``. User and vhost are decoded here, the password where it is used."""

    ssl: bool | None = None
    host: Annotated[tuple[str, ...], OneOrMany(), BrokerHosts()] | None = None
    virtualhost: BrokerText | None = None
    username: BrokerText | None = None
    password: Secret | None = field(default=None, metadata={"group": "password"})
    password_file: Path | None = field(default=None, metadata={"group": "password"})


@frozen
class OriginalBuilder(Table):
    """``builder``: generation 3."""

    rabbitmq: OriginalRabbit | None = None


@frozen
class OriginalDocument(Table):
    """A whole file of the original, or several laid over each other."""

    runner: OriginalRunner = OriginalRunner()
    feedback: OriginalFeedback = OriginalFeedback()
    checkout: OriginalCheckout = OriginalCheckout()
    nix: OriginalNix = OriginalNix()
    rabbitmq: OriginalRabbit = OriginalRabbit()
    builder: OriginalBuilder = OriginalBuilder()


@frozen
class OriginalLayer:
    """One file of the original: ``document`` without what was ``faulty`` in it."""

    source: Source
    document: OriginalDocument
    faulty: frozenset[KeyPath]

    @property
    def starts_identity(self) -> bool:
        """A file that names an identity starts one; any other is a layer for all."""
        return self.document.runner.identity is not None or ("runner", "identity") in self.faulty

    @property
    def has_password(self) -> bool:
        """Whether this file says a password itself."""
        rabbits = (self.document.rabbitmq, self.document.builder.rabbitmq)
        return any(rabbit is not None and rabbit.password is not None for rabbit in rabbits)


def read_original(document: Document, base: Path, problems: Problems) -> OriginalLayer:
    """Structure one file. Relative paths count from ``base``, as they count from the original's working directory."""
    source = document.source
    raw = _without_foreign(_without_nulls(document.raw), OriginalDocument, (), source, problems)
    structured = structure(OriginalDocument, raw, base=base, tilde_is_fault=False)
    for rejection in structured.rejections:
        problems.fault(source.place(*rejection.path), rejection.message)
    value: OriginalDocument = structured.value
    for rabbit, place in (
        (value.rabbitmq, source.place("rabbitmq", "password")),
        (value.builder.rabbitmq, source.place("builder", "rabbitmq", "password")),
    ):
        if rabbit is not None and rabbit.password is not None and source.shown_to_others:
            problems.warn(place, f"others can read this file with its password; {source.hiding}")
    return OriginalLayer(source, value, frozenset(rejection.path for rejection in structured.rejections))


def assemble(layers: Sequence[OriginalLayer], problems: Problems) -> list[Draft]:
    """One identity for each file that names one: that file and all nameless ones over each other, in their order."""
    drafts = []
    for starting in layers:
        if starting.starts_identity:
            merged, faulty = OriginalDocument(), set[KeyPath]()
            for layer in layers:
                if layer is starting or not layer.starts_identity:
                    merged = overlay(merged, layer.document)
                    faulty |= layer.faulty
            drafts.append(_draft(merged, starting.source, faulty, problems))
    return drafts


def _draft(merged: OriginalDocument, source: Source, faulty: set[KeyPath], problems: Problems) -> Draft:
    newest = merged.builder.rabbitmq is not None or not faulty.isdisjoint({("builder",), ("builder", "rabbitmq")})
    where: KeyPath = ("builder", "rabbitmq") if newest else ("rabbitmq",)
    if newest and merged.rabbitmq != OriginalRabbit():
        problems.warn(source.place("rabbitmq"), "not used: builder.rabbitmq is there as well, and newer")
    _check_feedback(merged, source.place("feedback", "full_logs"), problems, needed=not newest, faulty=faulty)
    rabbit = (merged.builder.rabbitmq or OriginalRabbit()) if newest else merged.rabbitmq
    if rabbit.password is not None and rabbit.password_file is not None:
        problems.warn(source.place(*where, "password"), "not used: password_file is there as well, and newer")
        rabbit = attrs.evolve(rabbit, password=None)
    renamed: dict[KeyPath, KeyPath] = {("name",): ("runner", "identity"), ("nix", "systems"): ("nix", "system")}
    renamed |= {("rabbitmq", column.name): (*where, column.name) for column in attrs.fields(RabbitTable)}
    back = {theirs: ours for ours, theirs in renamed.items()} | {where: ("rabbitmq",), where[:1]: ("rabbitmq",)}
    return Draft(
        table=_identity_table(merged, rabbit),
        source=source,
        is_json=True,
        renamed=renamed,
        faulty=frozenset(back.get(path, path) for path in faulty),
    )


def _identity_table(merged: OriginalDocument, rabbit: OriginalRabbit) -> IdentityTable:
    has_password = rabbit.password is not None or rabbit.password_file is not None
    return IdentityTable(
        name=merged.runner.identity,
        runner=RunnerTable(build_all_jobs=merged.runner.build_all_jobs),
        checkout=CheckoutTable(root=merged.checkout.root),
        nix=NixTable(
            systems=merged.nix.system,
            remote=merged.nix.remote,
            build_timeout_seconds=merged.nix.build_timeout_seconds,
            initial_heap_size=merged.nix.initial_heap_size,
        ),
        rabbitmq=RabbitTable(
            host=rabbit.host,
            ssl=rabbit.ssl,
            virtualhost=rabbit.virtualhost,
            username=rabbit.username,
            password=rabbit.password,
            password_file=rabbit.password_file,
            password_percent_encoded=True if has_password else None,
        ),
        feedback=FeedbackTable(full_logs=True),
    )


def _check_feedback(
    merged: OriginalDocument, place: Place, problems: Problems, *, needed: bool, faulty: set[KeyPath]
) -> None:
    """The original refuses to start unless its operator has agreed that full logs are public."""
    said = merged.feedback.full_logs
    told = any(path[:1] == ("feedback",) for path in faulty)
    if said is False or (said is None and needed and not told):
        state = "is false" if said is False else "is missing"
        problems.fault(
            place,
            f'{state}: build logs are published in full; agree with "feedback": {{"full_logs": true}} '
            "(or pass the file that has it as well)",
        )


def _without_nulls(value: Any) -> Any:
    """``value`` without keys that are null: the original takes null for absent."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


def _without_foreign(
    raw: Mapping[str, Any], table: type, path: KeyPath, source: Source, problems: Problems
) -> dict[str, Any]:
    """``raw`` with what the schema knows; a warning for each key that is neither known nor of another component."""
    known = {column.name: column.type for column in attrs.fields(attrs.resolve_types(table))}
    kept: dict[str, Any] = {}
    for name, value in raw.items():
        inner = _table_of(known.get(name))
        if name in known:
            kept[name] = (
                _without_foreign(value, inner, (*path, name), source, problems)
                if inner is not None and isinstance(value, dict)
                else value
            )
        elif name not in FOREIGN.get(path, frozenset()):
            near = nearest(name, (*known, *sorted(FOREIGN.get(path, ()))))
            hint = f"; did you mean {near}?" if near else ""
            problems.warn(source.place(*path, name), f"unknown key, ignored{hint}")
    return kept


def _table_of(type_: Any) -> type | None:
    """The class of an inner table, also where it may be missing; None for single values."""
    kinds = [kind for kind in (type_, *get_args(type_)) if isinstance(kind, type) and issubclass(kind, Table)]
    return kinds[0] if kinds else None
