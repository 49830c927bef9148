"""Evaluation and builds by nix. Knows no pull request and no message."""

from ofborg_async.nix.engine import NixEngine
from ofborg_async.nix.host import HostEvidence

__all__ = ["HostEvidence", "NixEngine"]
