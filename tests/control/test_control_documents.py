"""What is derived from the routes and snapshots: OpenAPI, metrics, the status page, verdicts."""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser

import attrs
import pytest
from attrs import evolve
from fake_daemon import HOSTILE, IDENTITIES, LONG_REMEDY, SNAPSHOT, FakeDaemon

from ofborg_async.control.metrics import render_metrics
from ofborg_async.control.openapi import openapi_document
from ofborg_async.control.page import render_page
from ofborg_async.control.routes import ROUTES, find_route
from ofborg_async.control.verdict import Verdict, identity_verdict, overall_verdict
from ofborg_async.model.status import AmqpState, DaemonSnapshot, IdentityState


def test_openapi_describes_every_route() -> None:
    document = openapi_document()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    text = str(document)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"]


def test_openapi_describes_every_field() -> None:
    schema = openapi_document()["components"]["schemas"]["DaemonSnapshot"]
    assert set(schema["properties"]) == {field.name for field in attrs.fields(DaemonSnapshot)}
    assert schema["properties"]["brokers"] == {
        "type": "array",
        "items": {"$ref": "#/components/schemas/BrokerSnapshot"},
    }
    state = openapi_document()["components"]["schemas"]["IdentitySnapshot"]["properties"]["state"]
    assert "quarantined" in state["enum"]


def test_every_route_is_found() -> None:
    for route in ROUTES:
        path = re.sub(r"\{\w+\}", "a%20b", route.path)
        found, values = find_route(route.method, path, read_only=False)
        assert found is route
        assert all(value == "a b" for value in values.values())


def test_metrics_are_prometheus_text() -> None:
    text = render_metrics(SNAPSHOT, FakeDaemon().metrics())
    line = re.compile(r'[a-z_0-9]+(\{([a-z_]+="([^"\\\n]|\\[\\"n])*",?)+\})? [-0-9.e+]+')
    names = []
    for row in text.splitlines():
        if row.startswith("# TYPE "):
            names.append(row.split()[2])
            assert (row.split()[3] == "counter") == names[-1].endswith("_total")
        elif not row.startswith("# HELP "):
            assert line.fullmatch(row), row
            assert row.startswith(names[-1])
    assert len(names) == len(set(names))
    assert 'ofborg_async_lines_total{identity="mac1-a",text="a\\"b\\\\c\\nd"} 7' in text
    assert 'ofborg_async_identity_state{identity="mac1-a",state="busy"} 1' in text
    assert 'ofborg_async_identity_state{identity="mac1-a",state="idle"} 0' in text


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in {"src", "href"}]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_escaped_and_self_contained() -> None:
    page = render_page(evolve(SNAPSHOT, host="<b>h</b>"))
    parser = _Tags()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.tags
    assert "b" not in parser.tags
    assert parser.links == []
    assert "url(" not in page
    assert HOSTILE not in page
    for identity in IDENTITIES:
        assert identity.name in page
    assert escape(LONG_REMEDY) in page
    assert "48 MiB free, floor 512 MiB, at /nix/&lt;b&gt;" in render_page(
        evolve(SNAPSHOT, disk_free_bytes=48 << 20, disk_place="/nix/<b>")
    )


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("mac1-a", Verdict.OK),
        ("mac1-b", Verdict.OK),
        ("mac1-refused", Verdict.DOWN),
        ("mac1-paused", Verdict.OK),
        ("mac1-quarantined", Verdict.DOWN),
    ],
)
def test_verdicts(name: str, verdict: Verdict) -> None:
    assert identity_verdict(next(row for row in IDENTITIES if row.name == name)) is verdict


def test_healthy_means_consuming() -> None:
    idle = IDENTITIES[1]
    for state in (AmqpState.CONNECTING, AmqpState.BLOCKED, AmqpState.DOWN):
        assert identity_verdict(evolve(idle, systems=(evolve(idle.systems[0], amqp=state),))) is Verdict.DEGRADED
    assert identity_verdict(evolve(idle, results_waiting=1)) is Verdict.DEGRADED
    assert identity_verdict(evolve(idle, state=IdentityState.FAILED)) is Verdict.DOWN


def test_the_gravest_identity_and_the_disk_decide() -> None:
    well = IDENTITIES[:2]
    assert overall_verdict(well, disk_free_bytes=2, disk_floor_bytes=1) is Verdict.OK
    assert overall_verdict(well, disk_free_bytes=1, disk_floor_bytes=2) is Verdict.DEGRADED
    assert overall_verdict(IDENTITIES, disk_free_bytes=2, disk_floor_bytes=1) is Verdict.DOWN
