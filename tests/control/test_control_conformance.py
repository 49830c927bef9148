"""The served OpenAPI document is true: every operation, with what fits it and what does not, over the Unix socket."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from anyio.from_thread import start_blocking_portal
from control_serving import PATIENCE_SECONDS, serving
from fake_daemon import FakeDaemon
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from ofborg_async.control.routes import ROUTES, Route

BASE = "http://localhost"
EXAMPLES = 30
OWN_FORMAT = re.compile('"format": ?"(printable|segment)",? ?')
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.positive_data_acceptance,
    checks.negative_data_rejection,
]


class UnixConnection(HTTPConnection):
    """A connection to a Unix socket instead of a host."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(self._path)


class UnixPool(HTTPConnectionPool):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> UnixConnection:
        return UnixConnection(self._path, PATIENCE_SECONDS)


class UnixAdapter(HTTPAdapter):
    """What ``requests`` sends through a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = UnixPool(str(path))

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Mapping[str, str] | None = None, cert: Any = None
    ) -> UnixPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()


PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=20)
schemathesis.openapi.format("printable", PRINTABLE)
schemathesis.openapi.format("segment", PRINTABLE.filter(lambda text: text not in {"", ".", ".."} and "/" not in text))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[requests.Session]:
    """Speaks to a daemon that only notes what it is told: drains and logs end at once, a stop stops nothing."""
    path = tmp_path_factory.mktemp("control") / "c.sock"
    daemon = FakeDaemon()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(path, daemon)),
        requests.Session() as session,
    ):
        portal.call(daemon.drained.set)
        portal.call(daemon.log_ended.set)
        session.trust_env = False  # no proxy of this machine
        session.mount(BASE, UnixAdapter(path))
        yield session


@pytest.fixture(scope="module")
def schemas(session: requests.Session) -> dict[GenerationMode, Any]:
    """The document to make requests from: what fits it, and what does not."""
    # 431: a thousand names do not fit the head of a request.
    config = {"checks": {"negative_data_rejection": {"expected-statuses": [400, 404, 409, 413, 431]}}}
    text = session.get(f"{BASE}/openapi.json").text
    # What violates a format of ours only we can tell.
    texts = {GenerationMode.POSITIVE: text, GenerationMode.NEGATIVE: OWN_FORMAT.sub("", text)}
    return {
        mode: schemathesis.openapi.from_dict(json.loads(text), config=schemathesis.Config.from_dict(config))
        for mode, text in texts.items()
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_an_operation_answers_as_it_is_described(
    session: requests.Session, schemas: dict[GenerationMode, Any], route: Route
) -> None:
    """For all that fits its description (where it has inputs: for what does not, too)."""
    modes = list(schemas) if route.query or route.body else [GenerationMode.POSITIVE]
    cases = [schemas[mode][route.path][route.method].as_strategy(generation_mode=mode) for mode in modes]
    # A daemon that is down says so with 503 at /healthz, as is described.
    wanted = [check for check in CHECKS if not (route.also and check is not_a_server_error)]

    @settings(max_examples=EXAMPLES * len(cases))
    @given(case=st.one_of(cases))
    def run(case: Any) -> None:
        case.validate_response(case.call(session=session, base_url=BASE), checks=wanted)

    run()
