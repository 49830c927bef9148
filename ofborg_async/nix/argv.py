"""Command lines of nix (wire document, "On disk and in processes"). Pure.

The *original's form* names the file and lets nix apply its function anew for every ``-A``. The *shared form* applies it
once for all attrs, by an expression that gives exactly what the original's form would (``_SHARED``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from ofborg_async.model.identity import NixSettings
from ofborg_async.model.job import Subset

ATTR_BYTES = 4096
"""A longer attr is refused: no real one comes near, and it is repeated in every error line."""

_FILE = {None: "./default.nix", Subset.NIXPKGS: "./default.nix", Subset.NIXOS: "./nixos/release.nix"}
_NIXPKGS_ARGUMENT = (
    '{ outPath=./.; revCount=999999; shortRev="ofborg"; rev="0000000000000000000000000000000000000000"; }'
)

# What nix does for `FILE -A X`: a function with named arguments is given those it asks for, or all if it has "...";
# its result is not applied again before the first name is looked up. `applied` is that; where nix would do otherwise
# the file's value is passed on as it is, so that nix itself does it. Only the XML of a function tells whether it has
# named arguments (`attrspat`) and "..." (`ellipsis`).
_APPLIED = """\
let
  file = import {file};
  arguments = {{ system = {system}; supportedSystems = [ {system} ];{nixpkgs} }};
  shape = builtins.toXML file;
  isNamed = builtins.match ".*<attrspat.*" shape != null;
  isOpen = builtins.match ".*<attrspat ellipsis=.*" shape != null;
  applied = file (if isOpen then arguments else builtins.intersectAttrs (builtins.functionArgs file) arguments);
  once = builtins.isFunction file && isNamed && !(builtins.isFunction applied) && !(applied ? __functor);
  root = if once then applied else file;
"""

# The second element prints how far nix has come (see `marker`).
_SHARED = (
    _APPLIED
    + """\
in [
  root
  (builtins.genList (n: builtins.trace "{nonce} ${{toString n}}" {{ }}) {count})
]"""
)

# `peek` is evaluated when nix has found the attr and knows its name, before it asks for a derivation's path. What is no
# derivation that is reached through plain sets ends the evaluation (abort, since tryEval does not catch that). Where
# the path cannot be had nix goes on, and its own error says why.
_AHEAD = (
    _APPLIED
    + """\
  isPlain = value: builtins.isAttrs value && !(value ? __functor);
  found = builtins.foldl' (value: name: if isPlain value then value.${{name}} or null else null) root [ {names} ];
  isDerivation = isPlain found && found.type or null == "derivation" && found ? drvPath && found ? outputName;
  isText = builtins.isString found.drvPath && builtins.isString found.outputName;
  named = builtins.unsafeDiscardStringContext found.drvPath + "!" + found.outputName;
  tried = builtins.tryEval (if isText then named else abort "{nonce}");
in {{
  {root} = builtins.seq root (builtins.trace "{nonce} root" root);
  {peek} = builtins.trace "{nonce} peek" (
    if !isDerivation then abort "{nonce}"
    else if tried.success then builtins.trace "{nonce} ${{tried.value}}!" {{ }}
    else builtins.trace "{nonce} failed" {{ }}
  );
}}"""
)
_PLAIN_ATTR = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*")


def refusal(attr: str) -> str | None:
    """Why an attr must never reach nix, or None.

    The empty attr selects the whole file, and so does one of quotes alone; one that starts with a dash could be taken
    for an option; the others cannot be passed or would break the lines of the log.
    """
    if len(attr) > ATTR_BYTES or len(attr.encode(errors="surrogatepass")) > ATTR_BYTES:
        return f"it is longer than {ATTR_BYTES} bytes"
    if not attr.replace('"', ""):
        return "it is empty and would select the whole file"
    if attr.startswith("-"):
        return "it starts with a dash"
    if any(ord(character) < ord(" ") or character == "\x7f" for character in attr):
        return "it has a control character"
    if any("\ud800" <= character <= "\udfff" for character in attr):
        return "it is not valid Unicode"
    return None


def options(settings: NixSettings) -> tuple[str, ...]:
    """The options that every nix command of a job takes."""
    return (
        *("--option", "extra-experimental-features", "no-url-literals"),
        "--show-trace",
        *("--option", "restrict-eval", "true"),
        *("--option", "build-timeout", str(settings.build_timeout_seconds)),
    )


def instantiate_original(
    settings: NixSettings, system: str, subset: Subset | None, attr: str, root: str | None
) -> tuple[str, ...]:
    """One attr in the original's form; with ``root`` its derivations are protected by links of that name."""
    return (
        "nix-instantiate",
        *options(settings),
        *_arguments(system, subset),
        _FILE[subset],
        *("-A", attr),
        *_add_root(root),
    )


def instantiate_shared(
    settings: NixSettings, system: str, subset: Subset | None, attrs: Sequence[str], root: str, nonce: str
) -> tuple[str, ...]:
    """Several attrs in the shared form. After each, nix prints ``marker(nonce, index)`` as an error line.

    The arguments are given to nix as well: functions inside the set that an attr leads through are applied to them.
    """
    return (
        "nix-instantiate",
        *options(settings),
        *_arguments(system, subset),
        *("-E", _shared_expression(system, subset, nonce, len(attrs))),
        *_selections(attrs),
        *_add_root(root),
    )


def marker(nonce: str, index: int) -> bytes:
    """The line that nix prints once the attr with this index is instantiated."""
    return b"trace: %s %d" % (nonce.encode(), index)


def is_plain(attr: str) -> bool:
    """Whether ``build_ahead`` can take this attr: names alone, nothing quoted and no place in a list."""
    return _PLAIN_ATTR.fullmatch(attr) is not None


def build_ahead(settings: NixSettings, system: str, subset: Subset | None, attr: str, nonce: str) -> tuple[str, ...]:
    """Evaluate a plain attr and build it: see ``ahead`` for what is printed on the way (``ahead_root``, lines)."""
    expression = _AHEAD.format(
        **_shared_words(system, subset, nonce),
        names=" ".join(_quoted(name) for name in attr.split(".")),
        root=ahead_root(nonce),
        peek=f"peek{nonce}",
    )
    return (
        *("nix-build", "--no-out-link", "--keep-going"),
        *options(settings),
        *_arguments(system, subset),
        *("-E", expression),
        *("-A", f"{ahead_root(nonce)}.{attr}", "-A", f"peek{nonce}"),
    )


def ahead_root(nonce: str) -> str:
    """The name that errors of ``build_ahead`` have in front of the attr's."""
    return f"root{nonce}"


def shared_bytes(attr: str) -> int:
    """What an attr adds to the arguments of the shared form, at most."""
    return sum(len(word.encode()) + 9 for word in _selections([attr])) + 16


def probe(settings: NixSettings, name: str) -> tuple[str, ...]:
    """Instantiate a derivation of ours, new under this name: it works if nix, its store and its daemon do."""
    expression = f'derivation {{ name = {_quoted(name)}; system = "none"; builder = "none"; }}'
    return ("nix-instantiate", *options(settings), "-E", expression)


def build_derivations(settings: NixSettings, derivations: Iterable[str]) -> tuple[str, ...]:
    """Build derivations (``X.drv!output``) that were instantiated before."""
    return ("nix-build", "--no-out-link", "--keep-going", *options(settings), *derivations)


def build_original(settings: NixSettings, system: str, subset: Subset | None, attrs: Iterable[str]) -> tuple[str, ...]:
    """Evaluate and build attrs in the original's form."""
    selections = (word for attr in attrs for word in ("-A", attr))
    return (
        *("nix-build", "--no-out-link", "--keep-going"),
        *options(settings),
        *_arguments(system, subset),
        _FILE[subset],
        *selections,
    )


def batches(words: Sequence[str], limit_bytes: int) -> Iterator[tuple[str, ...]]:
    """Cut ``words`` into runs that take at most ``limit_bytes`` of an argument list, each with one word at least."""
    batch: list[str] = []
    size = 0
    for word in words:
        more = len(word.encode()) + 9 + 12  # the pointer and the final NUL, and as much for a "-A" before it
        if batch and size + more > limit_bytes:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(word)
        size += more
    if batch:
        yield tuple(batch)


def _arguments(system: str, subset: Subset | None) -> tuple[str, ...]:
    nixpkgs = ("--arg", "nixpkgs", _NIXPKGS_ARGUMENT) if subset is Subset.NIXOS else ()
    return ("--argstr", "system", system, "--arg", "supportedSystems", f"[{_quoted(system)}]", *nixpkgs)


def _shared_expression(system: str, subset: Subset | None, nonce: str, count: int) -> str:
    return _SHARED.format(**_shared_words(system, subset, nonce), count=count)


def _shared_words(system: str, subset: Subset | None, nonce: str) -> dict[str, str]:
    return {
        "file": _FILE[subset],
        "system": _quoted(system),
        "nixpkgs": f" nixpkgs = {_NIXPKGS_ARGUMENT};" if subset is Subset.NIXOS else "",
        "nonce": nonce,
    }


def _selections(attrs: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for index, attr in enumerate(attrs) for word in ("-A", f"0.{attr}", "-A", f"1.{index}"))


def _add_root(root: str | None) -> tuple[str, ...]:
    return () if root is None else ("--add-root", root, "--indirect")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{escaped}"'
