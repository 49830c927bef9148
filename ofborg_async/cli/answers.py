"""What daemons answered, printed: each under its host's name, failures on standard error, one exit status for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.text import Text

from ofborg_async.cli.main import complain
from ofborg_async.cli.render_grid import make_console
from ofborg_async.cli.status_codes import EX_OK, status_of
from ofborg_async.cli.targets import Answer, Failure
from ofborg_async.control.problems import AnsweredError
from ofborg_async.control.values import SCHEMA
from ofborg_async.control.visible import visible

_T = TypeVar("_T")


def exit_status(answers: Sequence[Answer[_T] | Failure], judge: Callable[[_T], int] = lambda _: EX_OK) -> int:
    """The gravest status of all; ``judge`` says what a value means."""
    return max(status_of(answer.error) if isinstance(answer, Failure) else judge(answer.value) for answer in answers)


def print_answers(answers: Sequence[Answer[_T] | Failure], render: Callable[[_T, int], RenderableType]) -> None:
    """The values on standard output, in ``render``'s form for a width; the failures on standard error."""
    console = make_console()
    good = [answer for answer in answers if isinstance(answer, Answer)]
    if good:
        console.print(picture(good, lambda value: render(value, console.width)))
    for answer in answers:
        if isinstance(answer, Failure):
            complain(answer.error)


def picture(answers: Sequence[Answer[_T] | Failure], render: Callable[[_T], RenderableType]) -> Group:
    """All answers as one renderable, failures among them."""
    parts: list[RenderableType] = []
    for index, answer in enumerate(answers):
        if index:
            parts.append(Text(""))
        if answer.where:
            parts.append(Text(f"== {answer.where}", "bold"))
        if isinstance(answer, Failure):
            parts.append(Text(visible(str(answer.error)), "red"))
        else:
            parts.append(render(answer.value))
    return Group(*parts)


def print_documents(answers: Sequence[Answer[_T] | Failure], document: Callable[[_T], Mapping[str, Any]]) -> None:
    """JSON on standard output: the daemon's document for this host; for named hosts, one that holds theirs.

    A failure of this host's daemon is said on standard error; those of named hosts stand in the document.
    """
    if all(not answer.where for answer in answers):
        for answer in answers:
            if isinstance(answer, Failure):
                complain(answer.error)
            else:
                print(json.dumps(document(answer.value), indent=2))
        return
    hosts = [
        {"target": answer.where, "answer": None, "error": _error_document(answer)}
        if isinstance(answer, Failure)
        else {"target": answer.where, "answer": document(answer.value), "error": None}
        for answer in answers
    ]
    print(json.dumps({"schema": SCHEMA, "hosts": hosts}, indent=2))


def _error_document(failure: Failure) -> dict[str, str]:
    error = failure.error
    text = error.error if isinstance(error, AnsweredError) else error.detail
    return {"error": text, "remedy": error.remedy}
