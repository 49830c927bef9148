"""Work trees for jobs: one shared mirror for each repository, and trees that borrow from it. Knows no nix."""

from ofborg_async.checkout.maintenance import MirrorMaintenance
from ofborg_async.checkout.mirror import MirrorStore
from ofborg_async.checkout.workspace import GitWorkspace

__all__ = ["GitWorkspace", "MirrorMaintenance", "MirrorStore"]
