"""Service definitions for a configuration: systemd, launchd, and modules of NixOS and nix-darwin that say the same.

``deploy/`` holds what is printed for a configuration at its usual place; a test compares them.
"""

from ofborg_async.service.definition import Kind, Needs, define, needs_of
from ofborg_async.service.place import install, uninstall

__all__ = ["Kind", "Needs", "define", "install", "needs_of", "uninstall"]
