from __future__ import annotations

from pathlib import Path

import pytest
from config_place import Place

CONFIGS = Path(__file__).parents[2] / "configs"
SETS = [
    ("one-identity.toml",),
    ("many-identities.toml",),
    ("linux-farm.toml",),
    ("original-1-password.json",),
    ("original-2-password-file.json",),
    ("original-3-builder.json",),
    ("public.json", "private.json"),
]


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_each_example_loads(tmp_path: Path, names: tuple[str, ...]) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name in ("rabbitmq.password", "trial.password"):
        (credentials / name).write_text("secret\n")
    settings = Place(tmp_path).load(*(CONFIGS / name for name in names), credentials_directory=credentials)
    assert all(identity.name.startswith("example-") for identity in settings.identities)
    # In a clone others can read the files; nothing else is to be said about an example.
    assert [warning for warning in settings.warnings if "others can read this file" not in warning] == []


def test_every_example_is_tried() -> None:
    assert {path.name for path in CONFIGS.iterdir()} == {name for names in SETS for name in names}


def test_public_and_private_are_one_builder(tmp_path: Path) -> None:
    settings = Place(tmp_path).load(CONFIGS / "public.json", CONFIGS / "private.json")
    (builder,) = settings.identities
    assert builder.nix.systems == ("x86_64-linux", "i686-linux")
    assert builder.nix.initial_heap_size == "4g"
    assert str(builder.root) == "/var/lib/ofborg/checkout"


def test_the_first_generation_is_percent_decoded(tmp_path: Path) -> None:
    settings = Place(tmp_path).load(CONFIGS / "original-1-password.json")
    assert settings.identities[0].broker.password.reveal() == "replace me"
