"""Limits of the machine that a command has met, as one line that names the limit."""

from __future__ import annotations

import errno
import resource

_FULL = {errno.ENOSPC: "no space left on the disk", errno.EDQUOT: "the disk quota is used up"}


def limit_met(error: BaseException) -> str | None:
    """One line about the limit that an error comes from; None for any other error."""
    if isinstance(error, MemoryError):
        return f"out of memory{_of(resource.RLIMIT_AS, 'ulimit -v', 1024, ' KiB')}"
    text = " ".join(str(error).split())[:200]
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return _processes("no further thread can be started")
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in text:
        return f"out of memory ({text.rpartition('] ')[2]}){_of(resource.RLIMIT_AS, 'ulimit -v', 1024, ' KiB')}"
    if not isinstance(error, OSError):
        return None
    where = f"{error.filename}: " if isinstance(error.filename, str) else ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}too many open files{_of(resource.RLIMIT_NOFILE, 'ulimit -n')}"
    if error.errno == errno.EAGAIN:
        return _processes(f"{where}no further process can be started")
    if error.errno == errno.ENOMEM:
        return f"{where}out of memory{_of(resource.RLIMIT_AS, 'ulimit -v', 1024, ' KiB')}"
    if error.errno in _FULL:
        return f"{where}{_FULL[error.errno]}"
    return None


def _processes(what: str) -> str:
    return f"{what}: raise the limit of processes{_of(resource.RLIMIT_NPROC, 'ulimit -u')} or of the container (pids)"


def _of(limit: int, name: str, unit: int = 1, suffix: str = "") -> str:
    """The limit as the shell shows it."""
    soft, _ = resource.getrlimit(limit)
    return f" ({name} is {'unlimited' if soft == resource.RLIM_INFINITY else f'{soft // unit}{suffix}'})"
