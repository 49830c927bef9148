"""From what the files say to settings: defaults filled in, paths resolved, everything checked that needs the whole."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from ofborg_async.config.addresses import parse_listen_address
from ofborg_async.config.broker import resolve_broker
from ofborg_async.config.checks import KNOWN_SYSTEMS
from ofborg_async.config.context import Context
from ofborg_async.config.layers import Draft, said
from ofborg_async.config.names import is_personal, is_reserved, resemblance
from ofborg_async.config.places import SOCKET_PATH_BYTES_MOST, Host, daemon_socket, default_state_dir
from ofborg_async.config.problems import Place, Problems, printable
from ofborg_async.config.schema import DaemonTable
from ofborg_async.config.strict import nearest
from ofborg_async.model.identity import DaemonSettings, IdentitySettings, LimitSettings, NixSettings

CONSUMER_TAG_BYTES_MOST = 255  # an AMQP short string
FILE_NAME_BYTES_MOST = 255


def resolve_daemon(
    table: DaemonTable, place_of: Callable[[str], Place], environ: Mapping[str, str], host: Host, problems: Problems
) -> DaemonSettings:
    """The daemon's settings; ``place_of`` tells who said a key. Faults go to ``problems``."""
    values = said(table)
    values["state_dir"] = resolved(table.state_dir or default_state_dir(environ, host))
    values["control_socket"] = table.control_socket or daemon_socket(environ, host)
    if table.metrics_listen is not None:
        values["metrics_listen"] = parse_listen_address(table.metrics_listen)
    settings = DaemonSettings(**values)
    if len(os.fsencode(settings.control_socket)) > SOCKET_PATH_BYTES_MOST:
        problems.fault(
            place_of("control_socket"),
            f"the path of a socket can have at most {SOCKET_PATH_BYTES_MOST} bytes; choose a shorter one",
        )
    if settings.control_group is not None:
        try:
            grp.getgrnam(settings.control_group)
        except KeyError:
            problems.fault(place_of("control_group"), "this host has no such group; create it or name another")
    if settings.backoff_first_seconds > settings.backoff_max_seconds:
        problems.fault(
            place_of("backoff_max_seconds"),
            f"is less than backoff_first_seconds ({settings.backoff_first_seconds:g}); make it at least that",
        )
    if settings.state_dir.exists() and not settings.state_dir.is_dir():
        problems.fault(place_of("state_dir"), "is not a directory; remove it or choose another path")
    return settings


def resolve_identity(draft: Draft, context: Context) -> IdentitySettings | None:
    """The settings of a draft that has the defaults laid under it; None when a fault makes them impossible."""
    table, problems = draft.table, context.problems
    if table.name is None:
        context.missing(draft, ("name",))
    nix = _nix(draft, context)
    broker = resolve_broker(draft, context)
    _check_feedback(draft, problems)
    root = _root(draft, context)
    if table.name is None or nix is None or broker is None or root is None:
        return None
    identity = IdentitySettings(
        name=table.name,
        root=root,
        nix=nix,
        broker=broker,
        limits=LimitSettings(**said(table.limits)),
        source=draft.source.name,
        **said(table.runner),
        **{key: value for key, value in said(table.checkout).items() if key not in {"root", "allow_home"}},
        **{f"git_{key}": value for key, value in said(table.git).items()},
    )
    _check_name(draft, identity, context)
    return identity


def resolved(path: Path) -> Path:
    """The canonical path: absolute, no symbolic links (requirement R17: /private/var, not /var)."""
    return Path(os.path.realpath(path))


def _nix(draft: Draft, context: Context) -> NixSettings | None:
    table = draft.table.nix
    if table.systems is None:
        context.missing(draft, ("nix", "systems"))
        return None
    for system in table.systems:
        if system not in KNOWN_SYSTEMS:
            near = nearest(system, KNOWN_SYSTEMS)
            hint = f"; did you mean {near}?" if near else ""
            context.problems.warn(
                draft.place("nix", "systems"), f"{system!r} is no system that ofborg is known to build for{hint}"
            )
    settings = NixSettings(**said(table))
    if table.attempt_timeout_seconds is None:
        return attrs.evolve(settings, attempt_timeout_seconds=_attempt_timeout(draft, settings))
    if table.attempt_timeout_seconds < settings.build_timeout_seconds:
        context.problems.warn(
            draft.place("nix", "attempt_timeout_seconds"),
            f"is less than build_timeout_seconds ({settings.build_timeout_seconds}), which is then never reached",
        )
    return settings


def _attempt_timeout(draft: Draft, nix: NixSettings) -> float:
    """The usual limit, or more where a single build may take longer (a JSON file knows no such limit)."""
    limits = LimitSettings(**said(draft.table.limits))
    together = (
        nix.build_timeout_seconds
        + nix.eval_timeout_seconds
        + limits.fetch_timeout_seconds
        + limits.checkout_timeout_seconds
    )
    return max(nix.attempt_timeout_seconds, together)


def _check_feedback(draft: Draft, problems: Problems) -> None:
    full_logs = draft.table.feedback.full_logs
    place = draft.place("feedback", "full_logs")
    if full_logs is False:
        problems.fault(place, "is false, but build logs are published in full; set it to true to agree")
    elif full_logs is None and not draft.is_faulty(("feedback", "full_logs")):
        problems.warn(place, "not set: build logs are published in full; set it to true to say that you know")


def _root(draft: Draft, context: Context) -> Path | None:
    """The identity's resolved root, or None when there is none that could be used."""
    table, problems, place = draft.table, context.problems, draft.place("checkout", "root")
    if draft.is_faulty(("checkout", "root")):
        return None
    if table.checkout.root is not None:
        root = resolved(table.checkout.root)
    elif table.name is None:
        return None
    else:
        root = resolved(context.state_dir / table.name)
    shown = printable(str(root))
    if context.state_dir.is_relative_to(root):
        problems.fault(place, f"{shown} holds the daemon's state ({context.state_dir}); use a folder of its own")
        return None
    if root.is_relative_to(context.state_dir) and is_reserved(root.relative_to(context.state_dir).parts[0]):
        problems.fault(place, f"{shown} is a folder of the daemon's state; set checkout.root, or choose another name")
        return None
    if ":" in str(root):
        problems.fault(place, f"{shown} contains a colon, which separates paths in NIX_PATH; choose another")
        return None
    if is_personal(root, context.host):
        _personal_root(draft, shown, context)
    _check_existing(root, place, problems)
    if table.name is not None:
        context.roots.append((table.name, root))
    return root


def _personal_root(draft: Draft, shown: str, context: Context) -> None:
    """Requirement R25: paths of the root stand in public build logs."""
    what = f"{shown} is under a home directory, and its path shows in public build logs"
    if draft.is_json:
        context.problems.warn(draft.place("checkout", "root"), f"{what}; move it elsewhere, such as /var/lib/ofborg")
    elif not draft.table.checkout.allow_home:
        context.problems.fault(
            draft.place("checkout", "root"),
            f"{what}; set checkout.root (or daemon.state_dir) elsewhere, or checkout.allow_home = true",
        )


def _check_existing(root: Path, place: Place, problems: Problems) -> None:
    try:
        mode = root.stat().st_mode
    except OSError:  # it is made when the daemon starts
        return
    shown = printable(str(root))
    if not stat.S_ISDIR(mode):
        problems.fault(place, f"{shown} is not a directory; remove it or choose another path")
    elif mode & 0o007:
        problems.warn(place, f"everybody on this host can look into {shown}: chmod 700 {shown}")


def _check_name(draft: Draft, identity: IdentitySettings, context: Context) -> None:
    place = draft.place("name")
    size = len(identity.consumer_tag.encode())
    if size > CONSUMER_TAG_BYTES_MOST:
        context.problems.fault(
            place,
            f"name and systems make a consumer tag of {size} bytes, and AMQP allows {CONSUMER_TAG_BYTES_MOST}; "
            "choose a shorter name or fewer systems",
        )
    longest = max(len(f"{identity.name}.{system}.lock".encode()) for system in identity.nix.systems)
    if longest > FILE_NAME_BYTES_MOST:
        context.problems.fault(
            place, f"makes a file name of {longest} bytes, more than {FILE_NAME_BYTES_MOST}; shorten it"
        )
    if like := resemblance(identity.name, context.host):
        context.problems.warn(place, f"the public name {identity.name!r} shows {like}; choose one that does not")
