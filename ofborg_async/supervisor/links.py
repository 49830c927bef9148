"""The daemon's links: one for each broker and credentials that somebody uses, opened on demand, closed when unused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

import anyio
from anyio.abc import TaskGroup

from ofborg_async import __version__
from ofborg_async.broker.link import Link
from ofborg_async.clock import Clock
from ofborg_async.model.identity import BrokerSettings

log = logging.getLogger(__name__)


class Links:
    """Links by their settings. ``backoff``: seconds to wait after the n-th failure to connect in a row, n from 1."""

    def __init__(self, group: TaskGroup, clock: Clock, backoff: Callable[[int], float]) -> None:
        self._group = group
        self._clock = clock
        self._backoff = backoff
        self._links: dict[BrokerSettings, tuple[Link, anyio.CancelScope]] = {}

    @property
    def by_settings(self) -> Mapping[BrokerSettings, Link]:
        """Those that are open."""
        return {settings: link for settings, (link, _) in self._links.items()}

    def to(self, settings: BrokerSettings) -> Link:
        """The link to a broker, opened if it is not. Sync."""
        if settings not in self._links:
            link = Link(
                settings,
                clock=self._clock,
                backoff=self._backoff,
                client_properties={"ofborg_version": f"ofborg-async {__version__}"},
            )
            scope = anyio.CancelScope()
            self._links[settings] = link, scope
            self._group.start_soon(self._keep, link, scope)
        return self._links[settings][0]

    def close_unused(self, used: Collection[BrokerSettings]) -> None:
        """Close those that are not in ``used``. Sync: their connections end a moment later."""
        for settings in [settings for settings in self._links if settings not in used]:
            _, scope = self._links.pop(settings)
            log.info("nobody uses the connections of %s to the broker any more: closed", settings.username)
            scope.cancel()

    async def _keep(self, link: Link, scope: anyio.CancelScope) -> None:
        with scope:
            await link.run()
