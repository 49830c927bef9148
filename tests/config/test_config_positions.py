from __future__ import annotations

import pytest

from ofborg_async.config.positions import key_lines, line_of
from ofborg_async.config.strict import KeyPath

TEXT = '''
[daemon]  # first
max_builds = 1
[defaults.nix]
systems = [
  "x86_64-linux",
]
note = """
max_builds = 2
[[identity]]
"""
[[identity]]
name = "a"
checkout.root = "/a"
nix = { remote = "", systems = [] }
[identity.limits]
log_bytes = 1
[[ identity ]]
"na me" = "b"
  rabbitmq . host = "h"
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("daemon",), 2),
        (("daemon", "max_builds"), 3),
        (("defaults", "nix", "systems"), 5),
        (("defaults", "nix"), 4),
        (("defaults",), 4),
        (("defaults", "nix", "note"), 8),
        (("identity",), 12),
        (("identity", 0, "name"), 13),
        (("identity", 0, "checkout", "root"), 14),
        (("identity", 0, "checkout"), 14),
        (("identity", 0, "nix", "remote"), 15),
        (("identity", 0, "limits", "log_bytes"), 17),
        (("identity", 0, "git", "name"), 12),
        (("identity", 1), 18),
        (("identity", 1, "na me"), 19),
        (("identity", 1, "rabbitmq", "host"), 20),
        (("nowhere",), None),
    ],
)
def test_the_line_of_a_key(path: KeyPath, line: int | None) -> None:
    assert line_of(key_lines(TEXT), path) == line
