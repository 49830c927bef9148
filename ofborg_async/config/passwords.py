"""Where a password comes from: a file, the service manager's credentials, the configuration or the environment.

Only the digest of what was read is remembered beside the Secret itself; no message shows any of it.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from ofborg_async.config.checks import percent_decode
from ofborg_async.config.documents import digest, explain_os_error, read_bytes
from ofborg_async.config.problems import printable
from ofborg_async.config.schema import RabbitTable
from ofborg_async.config.strict import Rejected
from ofborg_async.model.identity import Secret

PASSWORD_BYTES_MOST = 64 * 1024
HOW = "set rabbitmq.password_file, rabbitmq.password_credential or OFBORG_ASYNC_RABBITMQ_PASSWORD"


@frozen
class FoundPassword:
    """A password; the ``file`` it was read from, if it was, with the file's ``digest`` and ``mode``."""

    secret: Secret
    file: Path | None = None
    digest: str = ""
    mode: int = 0


def find_password(table: RabbitTable, credentials_directory: Path | None) -> FoundPassword:
    """The password that ``table`` says. Raises Rejected."""
    if table.password is not None:
        return FoundPassword(_finish(table.password.reveal(), table))
    if table.password_credential is not None:
        if credentials_directory is None:
            raise Rejected(
                "the service manager gave no credentials (CREDENTIALS_DIRECTORY is not set): start it as a service "
                f"with LoadCredential={table.password_credential}:FILE"
            )
        return _read(credentials_directory / table.password_credential, table)
    if table.password_file is None:
        raise Rejected(f"no password: {HOW}")
    try:
        return _read(table.password_file, table)
    except Rejected:
        credential = credentials_directory / table.password_file.name if credentials_directory else None
        if credential is None or not credential.exists():
            raise
        return _read(credential, table)


def _read(path: Path, table: RabbitTable) -> FoundPassword:
    try:
        data, mode = read_bytes(path, PASSWORD_BYTES_MOST)
    except (OSError, ValueError) as error:
        raise Rejected(f"{printable(str(path))} cannot be read: {explain_os_error(error)}") from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Rejected(
            f"{printable(str(path))} is not UTF-8 text; it should hold the password and nothing else"
        ) from None
    return FoundPassword(_finish(text.removesuffix("\n"), table), path, digest(data), mode)


def _finish(text: str, table: RabbitTable) -> Secret:
    if table.password_percent_encoded:
        text = percent_decode(text)
    if not text:
        raise Rejected(f"the password is empty: {HOW}")
    if "\0" in text:
        raise Rejected("the password contains a NUL character, which no broker takes")
    return Secret(text)
