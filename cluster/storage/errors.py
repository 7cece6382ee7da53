"""Errors of object stores, as one line that names the URL."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class StorageError(OSError):
    """The store refused or failed; the message is one line that names the URL."""


class MissingError(StorageError, FileNotFoundError):
    """No such object."""


class UnavailableError(StorageError):
    """The store could not be reached, or the answer was incomplete; a later try may succeed."""


class TooLargeError(StorageError):
    """An object is larger than a file of its kind can be."""


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn the client's errors into a `StorageError`, one line that names the URL."""
    from obstore import exceptions

    try:
        yield
    except StorageError:
        raise
    except (exceptions.BaseError, OSError, ValueError) as error:
        kind, reason = _explain(where, error)
        raise kind(f"{where}: {reason}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the client, which is written in Rust; no Exception
            raise
        raise StorageError(f"{where}: the storage client failed ({_reason(str(error))})") from error


ENDS_EARLY = "the object ends before the requested bytes"
# The client has exception classes only for some errors, and none when listing: the others are told by their text.
_MISSING = re.compile(r"status code: 404")
_DENIED = re.compile(r"status code: 40[13]|Permission denied")
# Without credentials the client asks the metadata service of cloud machines, whose 404 is not the object's.
_NO_CREDENTIALS = re.compile(r"/latest/(api/token|meta-data)|computeMetadata|metadata/identity")
_STRAY = re.compile(r'(?:Path |parsing Path )"([^"]*)"')
_SHORT = re.compile(r"status code: 416|Requested range was invalid")
_AWAY = re.compile(r"status code: (408|429|50[0234])|HTTP error|timed out")


def _explain(where: str, error: Exception) -> tuple[type[StorageError], str]:
    from obstore import exceptions

    text = str(error).split("Debug source:")[0]
    local = "://" not in where
    if _NO_CREDENTIALS.search(text):
        return StorageError, "no credentials in the environment (S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError) or _MISSING.search(text):
        return MissingError, f"no such {'bucket' if 'NoSuchBucket' in text else 'object'}"
    denials = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)
    if isinstance(error, denials) or _DENIED.search(text):
        remedy = "the permissions of the folder" if local else "the credentials in the environment"
        return StorageError, f"access denied; check {remedy}"
    if "invalid path" in text and (stray := _STRAY.search(text)):
        return StorageError, f"the object {stray[1]!r} has an empty, dotted or unprintable part in its name; rename it"
    if _SHORT.search(text):
        return StorageError, ENDS_EARLY
    if _AWAY.search(text) and not local:
        server = re.search(r"performing \w+ (\w+://[^/ ]+)", text)
        return UnavailableError, f"no answer from {server[1] if server else 'the store'} ({_reason(text)})"
    return StorageError, _reason(text) or type(error).__name__


def _reason(text: str) -> str:
    """The end of the client's message in one line: the store's answer, or the network error."""
    if code := re.search(r"<Code>(.*?)</Code>", text):
        message = re.search(r"<Message>(.*?)</Message>", text)
        return f"{code[1]}: {message[1]}" if message else code[1]
    text = re.sub(r"^Generic \w+ error: |\s*\(os error \d+\)", "", text.strip())
    return re.sub(r"\s+", " ", text.rpartition(" - ")[2])[:300]
