"""Loading a configuration: files, environment and defaults to settings, or every fault at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import attrs
from attrs import frozen

from ofborg_async.config.context import Context
from ofborg_async.config.documents import Document, read_document
from ofborg_async.config.environment import read_environment
from ofborg_async.config.fingerprint import fingerprint
from ofborg_async.config.layers import Draft, overlay
from ofborg_async.config.original import OriginalLayer, assemble, read_original
from ofborg_async.config.places import PREFIX, Host
from ofborg_async.config.problems import Place, Problems, Source, printable
from ofborg_async.config.resolve import resolve_daemon, resolve_identity
from ofborg_async.config.schema import PASSWORD_SOURCES, DaemonTable, IdentityTable, TomlDocument
from ofborg_async.config.strict import KeyPath, structure
from ofborg_async.errors import ConfigError, ConfigFault, HostFault
from ofborg_async.model.identity import Settings

RootConflicts = Callable[[Sequence[tuple[str, Path]]], Sequence[str]]


def overlapping_roots(roots: Sequence[tuple[str, Path]]) -> list[str]:
    """Pairs of roots that are equal or nested by their resolved paths.

    What is the same on disk under two paths (a bind mount) only the locks' own comparison finds: give that to ``load``.
    """
    conflicts = []
    for index, (name, root) in enumerate(roots):
        for other_name, other in roots[index + 1 :]:
            if root.is_relative_to(other) or other.is_relative_to(root):
                how = "the same root" if root == other else "a root inside the other's"
                conflicts.append(
                    f"{name} and {other_name} have {how}: {root}" + ("" if root == other else f", {other}")
                )
    return conflicts


def load(
    paths: Sequence[Path],
    *,
    environ: Mapping[str, str],
    credentials_directory: Path | None = None,
    host: Host | None = None,
    root_conflicts: RootConflicts = overlapping_roots,
) -> Settings:
    """Read the files (TOML, the original's JSON, or both) and everything they name.

    ``credentials_directory`` defaults to CREDENTIALS_DIRECTORY of ``environ``; ``host`` to this one; ``root_conflicts``
    says for (identity, root) pairs which roots collide, one text for each pair; it may raise HostFault. Blocks on disk.
    Raises ConfigError with every fault.
    """
    settings, problems = examine(
        paths, environ=environ, credentials_directory=credentials_directory, host=host, root_conflicts=root_conflicts
    )
    if settings is None:
        raise ConfigError(problems.faults)
    return settings


def examine(
    paths: Sequence[Path],
    *,
    environ: Mapping[str, str],
    credentials_directory: Path | None,
    host: Host | None,
    root_conflicts: RootConflicts,
) -> tuple[Settings | None, Problems]:
    """As ``load``, without raising: the settings, None if there are faults, and all faults and warnings."""
    host = host or Host.here()
    problems = Problems()
    said = read_all(paths, environ=environ, host=host, problems=problems)
    daemon = resolve_daemon(said.daemon, said.place_of, environ, host, problems)
    if credentials_directory is None and environ.get("CREDENTIALS_DIRECTORY"):
        credentials_directory = Path(environ["CREDENTIALS_DIRECTORY"])
    context = Context(
        host=host, problems=problems, credentials_directory=credentials_directory, state_dir=daemon.state_dir
    )
    identities = [resolve_identity(said.with_defaults(draft), context) for draft in said.drafts]
    _check_roots(context, said.documents, root_conflicts)
    problems.sort([document.source.name for document in said.documents])
    if problems.faults:
        return None, problems
    settings = Settings(
        daemon=daemon,
        identities=tuple(identity for identity in identities if identity is not None),
        files=tuple(document.source.path for document in said.documents),
        warnings=tuple(problems.warnings),
        digests=MappingProxyType(
            {document.source.path: document.digest for document in said.documents} | context.digests
        ),
    )
    return attrs.evolve(settings, fingerprint=fingerprint(settings)), problems


def control_socket_of(paths: Sequence[Path], *, environ: Mapping[str, str], host: Host | None = None) -> Path | None:
    """The control socket that a configuration names, in a file or by ``environ``; None if it names none.

    Nothing else must be in order: whoever asks may not be allowed to read the passwords. Raises ConfigError for files
    that cannot be read, and for a fault of this key.
    """
    problems = Problems()
    said = read_all(paths, environ=environ, host=host or Host.here(), problems=problems)
    is_unread = len(said.documents) < len(paths)
    faults = [fault for fault in problems.faults if (is_unread and not fault.key) or _is_of_socket(fault)]
    if faults:
        raise ConfigError(faults)
    return said.daemon.control_socket


def _is_of_socket(fault: ConfigFault) -> bool:
    """A key of a file, or the variable."""
    return fault.key.lower().endswith("control_socket")


@frozen
class Said:
    """Everything that files and environment say, before defaults. In ``daemon_layers`` the last one wins."""

    documents: tuple[Document, ...]
    daemon_layers: tuple[tuple[DaemonTable, Source | None], ...]
    defaults: IdentityTable
    drafts: tuple[Draft, ...]
    faulty_defaults: frozenset[KeyPath]

    @property
    def daemon(self) -> DaemonTable:
        """All layers over each other."""
        merged = DaemonTable()
        for table, _ in self.daemon_layers:
            merged = overlay(merged, table)
        return merged

    def with_defaults(self, draft: Draft) -> Draft:
        """``draft`` with the defaults laid under it."""
        return attrs.evolve(
            draft, table=overlay(self.defaults, draft.table), faulty=draft.faulty | self.faulty_defaults
        )

    def place_of(self, key: str) -> Place:
        """Who said a key of [daemon]."""
        for table, source in reversed(self.daemon_layers):
            if getattr(table, key) is not None:
                return source.place("daemon", key) if source else Place("environment", f"{PREFIX}{key.upper()}")
        return Place("default", f"daemon.{key}")


def read_all(paths: Sequence[Path], *, environ: Mapping[str, str], host: Host, problems: Problems) -> Said:
    """Read every file and the environment. What is wrong is in ``problems`` and left out."""
    documents = [document for path in paths if (document := read_document(path, problems)) is not None]
    drafts: list[Draft] = []
    layers: list[OriginalLayer] = []
    daemon_layers: list[tuple[DaemonTable, Source | None]] = []
    defaults = IdentityTable()
    faulty: set[KeyPath] = set()
    for document in documents:
        if document.is_json:
            layers.append(read_original(document, host.working_directory, problems))
            continue
        toml = _read_toml(document, problems)
        drafts.extend(toml.drafts)
        daemon_layers.append((toml.document.daemon, document.source))
        defaults = overlay(defaults, toml.document.defaults)
        faulty |= toml.faulty_defaults
    drafts.extend(assemble(layers, problems))
    daemon, from_environment, faulty_variables = read_environment(environ, problems, host.working_directory)
    daemon_layers.append((daemon, None))
    said = Said(
        documents=tuple(documents),
        daemon_layers=tuple(daemon_layers),
        defaults=overlay(defaults, from_environment),
        drafts=tuple(drafts),
        faulty_defaults=frozenset(faulty) | faulty_variables,
    )
    _check_count(paths, said, layers, problems)
    check_names(drafts, problems)
    return said


@frozen
class _Toml:
    document: TomlDocument
    drafts: list[Draft]
    faulty_defaults: frozenset[KeyPath]


def _read_toml(document: Document, problems: Problems) -> _Toml:
    source = document.source
    structured = structure(TomlDocument, document.raw, base=source.path.parent)
    for rejection in structured.rejections:
        problems.fault(source.place(*rejection.path), rejection.message)
    value: TomlDocument = structured.value
    faulty = [rejection.path for rejection in structured.rejections]
    if value.defaults.name is not None:
        problems.fault(source.place("defaults", "name"), "a name belongs to one [[identity]]; move it there")
    _check_passwords(value.defaults, ("defaults",), source, problems)
    drafts = []
    for index, table in enumerate(value.identity):
        prefix: KeyPath = ("identity", index)
        _check_passwords(table, prefix, source, problems)
        below = frozenset(path[2:] for path in faulty if path[:2] == prefix)
        drafts.append(Draft(table=table, source=source, prefix=prefix, faulty=below))
    defaults = attrs.evolve(value.defaults, name=None)
    return _Toml(
        document=attrs.evolve(value, defaults=defaults),
        drafts=drafts,
        faulty_defaults=frozenset(path[1:] for path in faulty if path[0] == "defaults"),
    )


def _check_passwords(table: IdentityTable, prefix: KeyPath, source: Source, problems: Problems) -> None:
    """One way to say the password in one table, and inline only where no one else can read it."""
    said = [name for name in PASSWORD_SOURCES if getattr(table.rabbitmq, name) is not None]
    for name in said[1:]:
        problems.fault(source.place(*prefix, "rabbitmq", name), f"{said[0]} is there as well; keep one of them")
    if table.rabbitmq.password is not None and source.shown_to_others:
        problems.fault(
            source.place(*prefix, "rabbitmq", "password"),
            f"others can read this file; {source.hiding}, or use password_file",
        )


def _check_count(paths: Sequence[Path], said: Said, layers: Sequence[OriginalLayer], problems: Problems) -> None:
    """At least one identity, unless files that could not be read may have had one."""
    unread = len(said.documents) < len(paths)
    if not paths:
        problems.fault(Place("configuration"), "no file was given; name one with -c FILE")
    elif layers and not any(layer.starts_identity for layer in layers):
        place = layers[-1].source.place("runner", "identity")
        if said.drafts:
            problems.warn(place, "missing in every JSON file: they start no identity and are not used")
        elif not unread:
            problems.fault(place, 'missing in every file: say who this builder is, with "runner": {"identity": "..."}')
    elif not said.drafts and not unread and not _identity_was_faulty(problems):
        names = ", ".join(printable(str(path)) for path in paths)
        problems.fault(Place(names), "no identity; add an [[identity]] with its name")


def _identity_was_faulty(problems: Problems) -> bool:
    return any(fault.key.startswith("identity") for fault in problems.faults)


def check_names(drafts: Sequence[Draft], problems: Problems) -> None:
    """Each identity's name may be used once, in all files together."""
    first: dict[str, Draft] = {}
    for draft in drafts:
        name = draft.table.name
        if name is not None and first.setdefault(name, draft) is not draft:
            problems.fault(
                draft.place("name"),
                f"the identity {name!r} is in {first[name].source.name} already; each name may be used once",
            )


def _check_roots(context: Context, documents: Sequence[Document], root_conflicts: RootConflicts) -> None:
    """Requirement R08: two identities in one root, or one inside another's, destroy each other's work."""
    files = ", ".join(dict.fromkeys(document.source.name for document in documents))
    place = Place(files, "checkout.root")
    try:
        conflicts = root_conflicts(context.roots)
    except HostFault as error:
        context.problems.fault(place, str(error))
        return
    for conflict in conflicts:
        context.problems.fault(place, f"{conflict}; give each identity a root of its own")
