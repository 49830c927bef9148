"""Judges what a message says before git sees it: URL, branch, number and commit of a job are a stranger's words. Pure.

git itself refuses much of this; nothing here relies on that.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote

from ofborg_async.model.checkout import Gone, Refused
from ofborg_async.model.job import BuildJob

_LONGEST_URL = 2048
_LONGEST_BRANCH_BYTES = 1000
_LONGEST_COMPONENT_BYTES = 240  # a ref is a file, and its lock has 5 bytes more
_SHOWN = 120

_SCHEMES = frozenset({"https", "http", "ssh", "git", "file"})
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]")
_WITH_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)
_HELPER = re.compile(r"[A-Za-z0-9+.-]*::")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+~!$&'()*,;=:%-]*")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]")
_PORT = re.compile(r"[0-9]{1,5}")
_BAD_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]|\.\.|//|@\{")


def judge_job(job: BuildJob, schemes: Collection[str]) -> Refused | Gone | None:
    """Why a job cannot be checked out, None if nothing speaks against asking git.

    ``schemes`` are the transports that are allowed; ``file`` allows ``file://`` and absolute paths. Something that is
    no commit's name is Gone, as the original has it, everything else Refused.
    """
    if reason := refuse_url(job.repo.clone_url, schemes):
        return Refused(f"the clone URL {shown(job.repo.clone_url)} is refused: {reason}")
    branch = job.pr.target_branch
    if branch is not None and (reason := refuse_branch(branch)):
        return Refused(f"the target branch {shown(branch)} is refused: {reason}")
    if not 0 <= job.pr.number < 2**64:
        return Refused(f"{job.pr.number} is no number of a pull request")
    if not is_commit_name(job.pr.head_sha):
        return Gone(f"{shown(job.pr.head_sha)} is no commit")
    return None


def refuse_url(url: str, schemes: Collection[str]) -> str:
    """Why a clone URL is refused, "" if it is not: ``scheme://...``, ``user@host:path`` (ssh) or an absolute path."""
    if reason := _refuse_text(url):
        return reason
    if url.startswith("/"):
        return _refuse_scheme("file", schemes)
    if parts := _WITH_SCHEME.fullmatch(url):
        scheme, authority, path = parts.groups()
        return _refuse_scheme(scheme, schemes) or _refuse_place(scheme, authority, path)
    authority, colon, path = url.partition(":")
    if not colon or not path or "/" in authority:
        return "it is neither a URL nor an absolute path"
    return _refuse_scheme("ssh", schemes) or _refuse_authority(authority)


def refuse_branch(branch: str) -> str:
    """Why a branch name is refused, "" if ``refs/heads/<branch>`` is one for git-check-ref-format(1)."""
    if not branch:
        return "it is empty"
    if branch.startswith("-"):
        return "it begins with a dash"
    if _BAD_IN_REF.search(branch) or branch.startswith("/") or branch.endswith(("/", ".")):
        return "it is not well formed"
    components = branch.split("/")
    if any(component.startswith(".") or component.endswith(".lock") for component in components):
        return "it is not well formed"
    if (
        len(branch.encode()) > _LONGEST_BRANCH_BYTES
        or max(map(len, branch.encode().split(b"/"))) > _LONGEST_COMPONENT_BYTES
    ):
        return "it is too long"
    return ""


def is_commit_name(text: str) -> bool:
    """Whether ``text`` is the full name of an object: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits."""
    return _COMMIT.fullmatch(text) is not None


def shown(text: str) -> str:
    """A stranger's words for a message of ours: quoted, escaped, capped."""
    return ascii(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _refuse_text(url: str) -> str:
    """Judge what is wrong in every kind of URL."""
    if not 0 < len(url) <= _LONGEST_URL:
        return f"it is empty or longer than {_LONGEST_URL} characters"
    if url.startswith("-"):
        return "it begins with a dash"
    if _UNPRINTABLE.search(url) or _UNPRINTABLE.search(unquote(url).replace(" ", "")) or "\\" in url:
        return "it has a character that no URL has"
    if _HELPER.match(url):
        return "it names a transport helper"
    return ""


def _refuse_scheme(scheme: str, schemes: Collection[str]) -> str:
    if scheme not in _SCHEMES or scheme not in schemes:
        return f"{scheme} is not among the allowed transports ({', '.join(schemes)})"
    return ""


def _refuse_place(scheme: str, authority: str, path: str) -> str:
    if scheme == "file":
        return "a file URL names no host" if authority else ("" if path.startswith("/") else "it has no path")
    return _refuse_authority(authority) or ("" if path.strip("/") else "it has no path")


def _refuse_authority(authority: str) -> str:
    """Judge ``[user@]host[:port]``: nothing that ssh could take for an option, nothing percent-escaped in the host."""
    user, at, place = authority.rpartition("@")
    if at and (not _USER.fullmatch(user) or not _USER.fullmatch(unquote(user))):
        return "its user is none"
    bracket = place.rfind("]")
    host, colon, port = place.rpartition(":") if place.rfind(":") > bracket else (place, "", "")
    if not _HOST.fullmatch(host):
        return "its host is none"
    if colon and port and not _PORT.fullmatch(port):
        return "its port is none"
    return ""
