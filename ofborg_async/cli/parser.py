"""The commands and their options. Each command names the function that runs it; nothing of it is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

from ofborg_async import __version__
from ofborg_async.cli.moments import parse_duration, parse_since
from ofborg_async.cli.status_codes import EX_USAGE
from ofborg_async.clock import SystemClock
from ofborg_async.remote.hosts import parse_host

_T = TypeVar("_T")
DESCRIPTION = "One daemon per host that runs many isolated ofborg builder identities."
SERVICE = (
    "The definition by which a service manager runs the daemon on this configuration. Paths of the configuration, PATH "
    "and time-outs in it are this configuration's own. Nothing is started or stopped."
)
KINDS = "systemd, launchd, nixos or nix-darwin"
DEFAULT_PATIENCE_SECONDS = 10.0
DEFAULT_FOLLOW_SECONDS = 6 * 3600.0


class _Parser(argparse.ArgumentParser):
    """Wrong usage exits with 64 (EX_USAGE): argparse's own 2 would read as "an identity is down"."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to see what is right."""
        self.exit(EX_USAGE, f"ofborg-async: {message}\nSee: {self.prog} --help\n")


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"  # noqa: SLF001 - argparse has no public name


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; ``command`` of what it returns is ``module:function``."""
    parser = _Parser(prog="ofborg-async", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"ofborg-async {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_daemon_commands(commands)
    client = _client_options()
    _add_looking_commands(commands, client)
    _add_ordering_commands(commands, client)
    _add_submit(commands)
    return parser


def _add_daemon_commands(commands: _Commands) -> None:
    run = _command(
        commands,
        "run",
        "daemon:run",
        "run the daemon in the foreground",
        "Exit status: 0 stopped on request; 78 the configuration (or running as root without daemon.allow_root); 75 "
        "another daemon holds the state or a root; 1 anything else.",
    )
    check = _command(
        commands,
        "check",
        "daemon:check",
        "read the configuration and report every fault at once",
        "Exit status: 0, or 78 when there are faults.",
    )
    doctor = _command(
        commands,
        "doctor",
        "doctor:doctor",
        "check this host against every requirement of a builder, each with its cause and its remedy",
        "Run it as the daemon's own user: what is looked at is looked at with the rights of whoever runs it. It "
        "changes nothing, but builds one tiny derivation in the configured store to see whether builds are sandboxed. "
        "Exit status: 0 all well; 1 warnings; 2 failures.",
    )
    for command in (run, check, doctor):
        _add_files(command)
    for command in (check, doctor):
        command.add_argument("--json", action="store_true", help="the report as JSON")
    doctor.add_argument("identity", nargs="?", metavar="IDENTITY", help="for this identity alone")
    convert = _command(
        commands,
        "convert",
        "daemon:convert",
        "turn the original builder's JSON configurations into one commented TOML on standard output",
        "Passwords are left out unless --inline-secrets is given.",
    )
    convert.add_argument("file", nargs="+", type=Path, metavar="FILE.json", help="configurations of the original")
    convert.add_argument("--inline-secrets", action="store_true", help="write the passwords into the output")
    _add_service(commands)
    _command(commands, "demo", "daemon:demo", "show the main job at work with a private broker, store and repository")


def _add_service(commands: _Commands) -> None:
    service = commands.add_parser("service", help="the service definition for a configuration", description=SERVICE)
    actions = service.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = _command(actions, "print", "service:print_definition", "print the definition")
    write = _command(
        actions,
        "install",
        "service:install_definition",
        "write the definition where its service manager looks, and say what comes next",
        "A file that this command did not write, or that was changed since, is left as it is.",
    )
    remove = _command(actions, "uninstall", "service:uninstall_definition", "remove a definition that install wrote")
    for command in (show, write, remove):
        command.add_argument("--kind", required=True, type=_checked(_service_kind), metavar="KIND", help=KINDS)
    for command in (show, write):
        _add_files(command)
        command.add_argument(
            "--user", metavar="USER", help="the user it runs as; ofborg, on macOS _ofborg, if left out"
        )
    for command in (write, remove):
        command.add_argument(
            "--prefix", type=Path, default=Path("/"), metavar="DIR", help="stands before the usual place, for packaging"
        )


def _service_kind(text: str) -> object:
    from ofborg_async.service import Kind

    if text not in list(Kind):
        raise ValueError(f"{text[:20]!r} is none of {', '.join(Kind)}")
    return Kind(text)


def _add_looking_commands(commands: _Commands, client: _Parser) -> None:
    status = _command(
        commands,
        "status",
        "commands:status",
        "what the daemon and its identities are doing",
        "Exit status: 0 all well; 1 something is degraded; 2 an identity is down; 3 no daemon answers. With several "
        "hosts the gravest counts; with --watch, the last picture's.",
        client,
    )
    status.add_argument("identity", nargs="?", metavar="IDENTITY", help="this identity alone")
    looks = status.add_mutually_exclusive_group()
    looks.add_argument("--json", action="store_true", help="the whole snapshot as JSON")
    looks.add_argument("--watch", action="store_true", help="draw it anew every two seconds until Ctrl-C")
    why = _command(commands, "why", "commands:why", "the one reason why an identity is not building now", client=client)
    why.add_argument("identity", metavar="IDENTITY")
    why.add_argument("--json", action="store_true", help="as JSON")
    locks = _command(commands, "locks", "commands:locks", "holder, age and waiters of each lock", client=client)
    locks.add_argument(
        "--break",
        dest="key",
        metavar="KEY",
        help="free this lock if its holder is dead, by ending what the holder left behind",
    )
    locks.add_argument("--json", action="store_true", help="as JSON")
    history = _command(commands, "history", "commands:history", "finished attempts, newest first", client=client)
    history.add_argument("identity", nargs="?", metavar="IDENTITY", help="of this identity alone")
    history.add_argument(
        "--since",
        type=_checked(lambda text: parse_since(text, SystemClock().now())),
        metavar="WHEN",
        help="not older than a duration (2h, 3d), a date or a time of ISO 8601",
    )
    history.add_argument(
        "--limit", type=_checked(_history_limit), default=20, metavar="N", help="at most N, 20 when left out"
    )
    history.add_argument("--json", action="store_true", help="as JSON")
    logs = _command(
        commands,
        "logs",
        "logs:logs",
        "a build's log from the daemon's local copy, finished or running",
        "Into a pipe or a file the bytes go as they are; on a terminal control characters are shown as escapes.",
        client,
    )
    logs.add_argument(
        "selector",
        metavar="ATTEMPT|IDENTITY",
        help="an attempt's id, its beginning, or an identity: its newest attempt",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="stay until the attempt has ended")


def _add_ordering_commands(commands: _Commands, client: _Parser) -> None:
    pause = _command(
        commands, "pause", "commands:pause", "take no new job until resumed; survives a restart", client=client
    )
    pause.add_argument("--reason", default="", metavar="TEXT", help="why; status and why show it")
    pause.add_argument(
        "--for",
        dest="for_seconds",
        type=_checked(parse_duration),
        metavar="DURATION",
        help="resume by itself after this time, for instance 2h",
    )
    resume = _command(commands, "resume", "commands:resume", "undo pause, drain and quarantine", client=client)
    drain = _command(
        commands,
        "drain",
        "commands:drain",
        "take no new job and finish the running one",
        client=client,
    )
    drain.add_argument(
        "--deadline",
        type=_checked(parse_duration),
        metavar="DURATION",
        help="then end what still runs and requeue it, for instance 30m",
    )
    drain.add_argument("--wait", action="store_true", help="return once nothing runs any more")
    for command in (pause, resume, drain):
        command.add_argument("identities", nargs="*", metavar="IDENTITY", help="left out: all")
    cancel = _command(
        commands, "cancel", "commands:cancel", "end one build, its whole process tree, and report it", client=client
    )
    cancel.add_argument("attempt", metavar="ATTEMPT", help="the attempt's id or the beginning of it")
    restart = _command(
        commands, "restart", "commands:restart", "start one identity anew; its job is requeued", client=client
    )
    restart.add_argument("identity", metavar="IDENTITY")
    reload = _command(
        commands,
        "reload",
        "commands:reload",
        "read the configuration files again and apply what changed, identity by identity",
        "Identities that did not change are not touched; running jobs end before theirs restarts. Exit status: 78 when "
        "the files have faults: all are listed, and nothing was changed.",
        client,
    )
    reload.add_argument("--json", action="store_true", help="the report as JSON")
    stop = _command(commands, "stop", "commands:stop", "stop the daemon", client=client)
    stop.add_argument("--wait", action="store_true", help="return once it has stopped; Ctrl-C ends the wait alone")


def _add_submit(commands: _Commands) -> None:
    submit = _command(
        commands,
        "submit",
        "submit:submit",
        "publish a build job as the feeder would",
        "Exit status with --follow: 0 when every result is Success, else 1.",
    )
    where = submit.add_mutually_exclusive_group(required=True)
    where.add_argument("-c", "--config", action="append", type=Path, metavar="FILE", help="use the broker of this file")
    where.add_argument(
        "--amqp-url",
        metavar="URL",
        help="amqp[s]://user:password@host[:port]/vhost; others can see a command line, so prefer -c",
    )
    submit.add_argument("--identity", metavar="IDENTITY", help="with -c: whose broker, the first one's when left out")
    submit.add_argument("--repo", required=True, metavar="OWNER/NAME")
    submit.add_argument("--clone-url", metavar="URL", help="https://github.com/OWNER/NAME.git when left out")
    submit.add_argument("--pr", required=True, type=int, metavar="NUMBER")
    submit.add_argument("--head-sha", required=True, metavar="SHA", help="the commit to merge and build")
    submit.add_argument("--target-branch", metavar="BRANCH", help="the remote's default branch when left out")
    submit.add_argument(
        "--system", required=True, action="append", metavar="SYSTEM", help="for instance x86_64-linux; repeatable"
    )
    submit.add_argument("--subset", choices=("Nixpkgs", "NixOS"), help="which file the attrs are taken from")
    submit.add_argument("--request-id", metavar="ID", help="a fresh UUID when left out")
    submit.add_argument("--follow", action="store_true", help="print the log and the result")
    submit.add_argument(
        "--timeout",
        type=_checked(parse_duration),
        default=DEFAULT_FOLLOW_SECONDS,
        metavar="DURATION",
        help="with --follow: how long to wait for the results, 6h when left out",
    )
    submit.add_argument("attrs", nargs="+", metavar="ATTR")


def _client_options() -> _Parser:
    parent = _Parser(add_help=False)
    group = parent.add_argument_group("which daemon")
    socket = group.add_mutually_exclusive_group()
    socket.add_argument("--socket", metavar="PATH", help="its control socket, here or (with --host) there")
    socket.add_argument(
        "-c",
        "--config",
        action="append",
        type=Path,
        metavar="FILE",
        help="its configuration, which may name the socket; nothing else of it is looked at",
    )
    group.add_argument(
        "--host",
        action="append",
        default=[],
        type=_checked(parse_host),
        metavar="USER@HOST[:PORT]",
        help="speak to it over SSH; repeatable. The host's key must be known",
    )
    group.add_argument("--fleet", type=Path, metavar="FILE", help="a file of hosts, one a line, # begins a comment")
    group.add_argument(
        "--patience",
        type=_checked(parse_duration),
        default=DEFAULT_PATIENCE_SECONDS,
        metavar="DURATION",
        help="give up on a host after this time, 10s when left out",
    )
    return parent


def _command(
    commands: _Commands,
    name: str,
    function: str,
    summary: str,
    epilog: str | None = None,
    client: _Parser | None = None,
) -> argparse.ArgumentParser:
    description = summary[0].upper() + summary[1:] + "."
    parents = [client] if client is not None else []
    command = commands.add_parser(name, help=summary, description=description, epilog=epilog, parents=parents)
    command.set_defaults(command=f"ofborg_async.cli.{function}")
    return command


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-c",
        "--config",
        action="append",
        required=True,
        type=Path,
        metavar="FILE",
        help="TOML, or JSON of the original builder; repeatable",
    )


def _checked(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Let argparse print the sentence of a ValueError instead of one of its own."""

    def checked(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _history_limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 5 or not 1 <= int(text) <= 1000:
        raise ValueError(f"{text[:20]!r} is no number from 1 to 1000")
    return int(text)
