"""Lowers what the AMQP libraries log.

They report at warning and error level what this room handles and reports itself in its own words: a refused
connection, a channel closed by the broker, a reader that ended. An operator would read every fault twice, once with a
traceback. So whatever its loggers say is said again at debug level by ``ofborg_async.broker.amqp``.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("ofborg_async.broker.amqp")

LIBRARY_LOGGERS = ("aio_pika", "aiormq", "pamqp")


class _Lowered(logging.Handler):
    """Repeats a record at debug level, in the name of this package."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it again; the traceback is kept."""
        logger.debug("%s said: %s", record.name, record.getMessage(), exc_info=record.exc_info)


_lowered = _Lowered()


def quiet_library_logs() -> None:
    """Route the libraries' loggers through ``_Lowered``. Calling it again changes nothing.

    Their level is warning: below it aiormq formats each frame it sends and receives.
    """
    for name in LIBRARY_LOGGERS:
        library = logging.getLogger(name)
        library.setLevel(logging.WARNING)
        library.propagate = False
        if _lowered not in library.handlers:
            library.addHandler(_lowered)
