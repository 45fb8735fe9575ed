"""One night at a time: a lock file that names its owner and outlives no process.

Whether the owner lives is decided by its process, never by the clock. As long as it runs it holds a lock of the
kernel's on a file beside, which containers of one machine see of each other though each numbers its processes anew.
Where a file system knows no such locks, on Linux a process is known by its number, the ticks after boot at which it
started and the boot itself, none of which move when the clock does.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sleep_pipeline.registry import write_atomically

LOCK = "night.lock"
GUARD = "night.lock.guard"
HELD = "night.lock.held"


class NightLockError(RuntimeError):
    """Another night holds the lock."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: its process.
        host: its machine.
        process: tells the process from later ones of the same number; empty if the system does not say.
        started: when it took the lock, ISO 8601 with the time zone.
        token: of this very lock.
        held: whether it holds the kernel's lock on the file beside as long as it runs.
    """

    pid: int
    host: str
    process: str
    started: str
    token: str
    held: bool = False

    def age(self, now: datetime) -> timedelta | None:
        """Return how long it has held the lock; None if the start is unreadable or in the future."""
        try:
            held = now - datetime.fromisoformat(self.started)
        except (ValueError, TypeError):
            return None
        return held if held >= timedelta(0) else None

    def describe(self, now: datetime) -> str:
        """Return process, host and age, for people."""
        age = self.age(now)
        since = f"for {_duration(age)}" if age is not None else f"since {self.started}, which is no time in the past"
        return f"process {self.pid} on {self.host}, {since}"


def process_identity(pid: int) -> str | None:
    """Return what tells a running process from others that had or will have its number.

    None if it does not run; empty if it runs and the system says no more of it.
    """
    import psutil

    if not psutil.pid_exists(pid):
        return None
    try:
        if not psutil.LINUX:
            return str(psutil.Process(pid).create_time())
        # The command in parentheses may hold spaces and parentheses of its own.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *numbers = stat.rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, psutil.Error):
        return ""
    return None if state in "ZX" else f"{boot}/{numbers[18]}"


class NightLock:
    """Holds `night.lock` in a folder while a block runs.

        with NightLock(models_folder):
            ...

    A lock whose process on this machine has ended is taken over, whatever the machine or the container was called then.
    One of another machine cannot be judged from here and is always respected.

    Args:
        folder: made if it does not exist.

    Raises:
        NightLockError: on entering, when a night is under way; it names the owner and how long it has been at it.
    """

    def __init__(self, folder: Path | str):
        self.path = Path(folder) / LOCK
        self._owner: Owner | None = None
        self._held: IO[str] | None = None

    def __enter__(self) -> NightLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, or raise `NightLockError` at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        pid, now = os.getpid(), datetime.now(UTC)
        owner = Owner(pid, socket.gethostname(), process_identity(pid) or "", now.isoformat(), uuid.uuid4().hex)
        with _one_at_a_time(self.path.with_name(GUARD)):
            if self.path.exists():
                self._refuse_unless_dead(now)
            self._held = _hold(self._held_path)
            owner = replace(owner, held=self._held is not None)
            write_atomically(self.path, json.dumps(asdict(owner), indent=2) + "\n")
        self._owner = owner

    def check(self) -> None:
        """Raise `NightLockError` if the lock cannot be had now; nothing is written."""
        if self.path.exists():
            self._refuse_unless_dead(datetime.now(UTC))

    def release(self) -> None:
        """Give the lock back; a lock that another owner has taken meanwhile is left alone."""
        owner, self._owner = self._owner, None
        if owner is not None and _read(self.path) == owner:
            self.path.unlink(missing_ok=True)
        if self._held is not None:
            self._held.close()
            self._held = None

    @property
    def _held_path(self) -> Path:
        return self.path.with_name(HELD)

    def _refuse_unless_dead(self, now: datetime) -> None:
        owner = _read(self.path)
        if owner is None:
            raise NightLockError(
                f"{self.path} does not say who holds it: make sure that no night is running, and delete the file"
            )
        here = owner.host == socket.gethostname()
        if _is_held(self._held_path) or (here and _lives(owner)):
            remedy = "wait for it, or end it"
        elif here or (owner.held and _same_boot(owner)):
            return
        else:
            remedy = f"wait for it; if {owner.host} runs no night any more, delete {self.path}"
        raise NightLockError(f"A night is under way: {owner.describe(now)}; {remedy}.")


def _same_boot(owner: Owner) -> bool:
    """Whether a lock was taken on this very machine since it was started, in whatever container."""
    boot, _, _ = (process_identity(os.getpid()) or "").rpartition("/")
    return bool(boot) and owner.process.rpartition("/")[0] == boot


def _lives(owner: Owner) -> bool:
    running = process_identity(owner.pid)
    if running is None:
        return False
    return not (running and owner.process) or running == owner.process


def _hold(path: Path) -> IO[str] | None:
    """Lock a file until it is closed or this process ends; None where someone else has it, or it cannot be locked.

    The file stays when the lock goes: one that was deleted and made anew would be another file to the kernel.
    """
    import fcntl

    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _is_held(path: Path) -> bool:
    """Whether a running process of this machine, or of one of its containers, has locked a file."""
    import fcntl

    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _one_at_a_time(guard: Path) -> Iterator[None]:
    """Keep two processes from looking at the lock and taking it at the same moment; the kernel frees this one."""
    import fcntl

    with guard.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def current_owner(folder: Path | str) -> Owner | None:
    """Return who holds the lock of a folder, dead or alive; None if nobody does."""
    return _read(Path(folder) / LOCK)


def _read(path: Path) -> Owner | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Owner(
            int(record["pid"]),
            str(record["host"]),
            str(record["process"]),
            str(record["started"]),
            str(record["token"]),
            bool(record.get("held", False)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _duration(age: timedelta) -> str:
    minutes, seconds = divmod(int(age.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0 s"
