from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from ofborg_async.config.reference import MODELS, with_key_tables
from ofborg_async.config.schema import DaemonTable, IdentityTable, RabbitTable

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
DAEMON = attrs.fields(DaemonTable)
# Fields of the model that no key of the same name stands for, and why.
DERIVED = {
    "addresses": "rabbitmq.host",
    "vhost": "rabbitmq.virtualhost",
    "name": "name",
    "root": "checkout.root",
    "source": "the file",
    "certificates": "the contents of ca_file, client_certificate_file and client_key_file",
    "git_name": "git.name",
    "git_email": "git.email",
    "nix": "a table",
    "broker": "a table",
    "limits": "a table",
}


def test_the_document_is_what_the_schema_says() -> None:
    text = DOCUMENT.read_text()
    assert with_key_tables(text) == text, "run: python -m ofborg_async.config.reference docs/configuration.md"


def test_every_field_of_the_model_has_a_key() -> None:
    tables: list[type[Any]] = [DaemonTable, *(type(section.default) for section in attrs.fields(IdentityTable)[1:])]
    keys = {field.name for table in tables for field in attrs.fields(table)}
    fields = {field.name for model in set(MODELS.values()) for field in attrs.fields(model)}
    assert fields - keys - set(DERIVED) == set()


@pytest.mark.parametrize("field", [*DAEMON, *attrs.fields(RabbitTable)], ids=lambda field: str(field.name))
def test_every_key_says_what_it_is(field: attrs.Attribute[Any]) -> None:
    assert len(field.metadata["doc"]) > 5
    assert "|" not in field.metadata["doc"]
    assert f"`{field.name}`" in DOCUMENT.read_text()
