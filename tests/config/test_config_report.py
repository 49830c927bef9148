from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_place import IDENTITY, Place

from ofborg_async.config import check_report


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def report(place: Place, text: str) -> Any:
    path = place.write("a.toml", text)
    return check_report([path], environ={"STATE_DIRECTORY": str(place.folder / "state")}, host=place.host)


def test_what_will_run_and_what_the_public_sees(place: Place) -> None:
    result = report(place, IDENTITY.replace("alpha", "jdoe-builder"))
    assert result.exit_status == 0
    root = str(place.folder / "state" / "jdoe-builder")
    for part in (
        "jdoe-builder",
        "build-inputs-x86_64-linux",
        root,
        "amqps://user@broker.example.org:5671, vhost '/'",
        "In public this shows",
        "warning: ",
    ):
        assert part in result.text
    document = json.loads(json.dumps(result.document))
    assert document["ok"]
    assert document["identities"][0]["queues"] == {"x86_64-linux": "build-inputs-x86_64-linux"}
    assert document["identities"][0]["root"] == root
    assert any(root in sentence for sentence in document["exposed"])
    assert len(document["warnings"]) == 1
    assert "hunter2" not in result.text + json.dumps(result.document)


def test_a_hidden_root_is_not_called_exposed(place: Place) -> None:
    result = report(place, IDENTITY + "checkout.replace_root_in_logs = true\nrunner.build_all_jobs = true\n")
    assert not any(str(place.folder) in sentence for sentence in result.document["exposed"])
    assert "EVERY job" in result.text


def test_every_fault_and_warning(place: Place) -> None:
    result = report(place, IDENTITY.replace("full_logs = true", 'full_log = "x"') + "[daemon]\nmax_builds = -1\n")
    assert result.exit_status == 78
    assert "2 faults" in result.text
    assert [fault["key"] for fault in result.document["faults"]] == [
        "identity[alpha].feedback.full_log",
        "daemon.max_builds",
    ]
    assert result.document["faults"][0]["line"] == 6
    assert "warning: " in result.text
    assert not result.document["ok"]


def test_a_wrong_variable_is_not_called_unset_as_well(place: Place) -> None:
    path = place.write("a.toml", IDENTITY.replace("feedback.full_logs = true", ""))
    environ = {"STATE_DIRECTORY": str(place.folder / "state"), "OFBORG_ASYNC_FEEDBACK_FULL_LOGS": "maybe"}
    result = check_report([path], environ=environ, host=place.host)
    assert [fault["key"] for fault in result.document["faults"]] == ["OFBORG_ASYNC_FEEDBACK_FULL_LOGS"]
    assert not any("full_logs" in warning for warning in result.document["warnings"])
