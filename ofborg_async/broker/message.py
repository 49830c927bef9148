"""The messages that this room publishes one by one: results, and jobs of ``submit``."""

from __future__ import annotations

import aio_pika  # noqa: TID251 - this is that room
from pamqp import commands


class JsonMessage(aio_pika.Message):
    """A persistent message of JSON, with no property on the wire but those that the original sets.

    By itself aio-pika also sends a priority of 0 and an empty table of headers.
    """

    def __init__(self, body: bytes, *, message_id: str | None = None) -> None:
        super().__init__(
            body,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message_id,
        )

    @property
    def properties(self) -> commands.Basic.Properties:
        """What goes into the content header."""
        properties = super().properties
        properties.priority = None
        properties.headers = None
        return properties
