"""One asyncio daemon per host that runs many isolated ofborg builder identities."""

__version__ = "0.1.0"
