"""Network addresses as they are written in a configuration: ``host``, ``host:port``, ``[v6]:port``."""

from __future__ import annotations

import ipaddress
import re

HOST = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}(?<!-)")


def parse_broker_address(text: str) -> tuple[str, int | None]:
    """``h``, ``h:port``, ``[v6]``, ``[v6]:port`` or a bare IPv6 address as (host, port or None).

    Raises ValueError with a message that never shows the text: it may hold a password by mistake.
    """
    if "://" in text or "@" in text or "/" in text:
        raise ValueError('write the host name alone, or "host:port"; user, password and vhost have keys of their own')
    if _is_v6(text):
        return text, None
    host, port = _split(text)
    if port == 0:
        raise ValueError("port 0 cannot be connected to; ports go from 1 to 65535")
    return host, port


def parse_listen_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:9100``, ``[::1]:9100`` or ``localhost:9100`` as (host, port); port 0 means any free port.

    Raises ValueError for anything that is not of this host alone: what is served there has no access control.
    """
    host, port = _split(text)
    if port is None:
        raise ValueError('has no port; write "127.0.0.1:9100" or another port')
    if not is_local(host):
        raise ValueError(
            f'{host!r} can be reached from other hosts; use a loopback address, such as "127.0.0.1:{port}"'
        )
    return host, port


def is_local(host: str) -> bool:
    """Whether ``host`` is this machine: what is said there unencrypted cannot be heard by others."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def format_address(host: str, port: int) -> str:
    """``host:port`` with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(text: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", text)
    plain = re.fullmatch(r"([^:\[\]]*)(?::([0-9]{1,5}))?", text)
    if bracketed and _is_v6(bracketed.group(1)):
        host, port = bracketed.groups()
    elif plain and HOST.fullmatch(plain.group(1)):
        host, port = plain.groups()
    else:
        raise ValueError('is no address; write "host", "host:port" or "[IPv6 address]:port"')
    if port is not None and int(port) > 65535:
        raise ValueError(f"port {port} is too large; ports go from 1 to 65535")
    return host, int(port) if port is not None else None


def _is_v6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
