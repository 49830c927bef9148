"""Errors of the control API, on both sides of it. Each says what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable

from ofborg_async.errors import OfborgAsyncError


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like ``name``; None when none does."""
    import difflib  # only wrong names need it; the daemon's memory does not

    matches = difflib.get_close_matches(name, list(known), n=1)
    return matches[0] if matches else None


class UnknownNameError(OfborgAsyncError):
    """Nothing has that name. ``kind`` is what was looked for ("identity", "attempt"); answered with 404.

    ``remedy`` names the nearest of ``known``, or lists them when none is near.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str] = ()) -> None:
        self.kind = kind
        self.name = name
        names = sorted(known)
        close = nearest(name, names)
        if close is not None:
            self.remedy = f"did you mean {close}?"
        elif names:
            shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
            self.remedy = f"known are: {shown}"
        else:
            self.remedy = ""
        super().__init__(f"no {kind} is called {name!r}")


class ConflictError(OfborgAsyncError):
    """The daemon knows what was meant but cannot do it now; answered with 409. ``remedy`` may be ""."""

    def __init__(self, detail: str, *, remedy: str = "") -> None:
        self.remedy = remedy
        super().__init__(detail)


class RequestError(OfborgAsyncError):
    """A request that the server refuses before it asks the daemon; answered with ``status`` (4xx) and ``headers``."""

    def __init__(
        self, status: int, detail: str, *, remedy: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.status = status
        self.remedy = remedy
        self.headers = headers
        super().__init__(detail)


class NoDaemonError(OfborgAsyncError):
    """No daemon answers (the client's side). ``where`` names the socket or host; commands exit with 3 for it."""

    def __init__(self, where: str, detail: str, *, remedy: str = "") -> None:
        self.where = where
        self.detail = detail
        self.remedy = remedy
        super().__init__(f"no daemon answers at {where}: {detail}" + (f" ({remedy})" if remedy else ""))


class AnsweredError(OfborgAsyncError):
    """The daemon answered with a problem (the client's side): ``status``, ``error`` and ``remedy`` as it sent them."""

    def __init__(self, status: int, error: str, *, remedy: str = "") -> None:
        self.status = status
        self.error = error
        self.remedy = remedy
        super().__init__(error + (f" ({remedy})" if remedy else ""))
