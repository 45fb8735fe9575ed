"""One night at a time, and a dead one stops nobody."""

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sleep_pipeline.night_lock import LOCK, NightLock, NightLockError, Owner, current_owner, process_identity

HOLDER = """
import sys
from sleep_pipeline.night_lock import NightLock
lock = NightLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def write_lock(folder: Path, **changes: Any) -> None:
    record = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "process": process_identity(os.getpid()),
        "started": datetime.now(UTC).isoformat(),
        "token": "other",
    }
    (folder / LOCK).write_text(json.dumps({**record, **changes}))


def test_the_lock_names_its_owner_while_the_block_runs_and_goes_with_it(tmp_path: Path) -> None:
    with NightLock(tmp_path / "models"):
        owner = current_owner(tmp_path / "models")
        assert owner is not None
        assert (owner.pid, owner.host) == (os.getpid(), socket.gethostname())
    assert current_owner(tmp_path / "models") is None


def test_an_error_in_the_night_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), NightLock(tmp_path):
        raise ValueError("broken")
    assert current_owner(tmp_path) is None


def test_a_second_night_is_told_who_runs_and_for_how_long(tmp_path: Path) -> None:
    write_lock(tmp_path, started=(datetime.now(UTC) - timedelta(hours=2, minutes=3, seconds=10)).isoformat())
    with pytest.raises(NightLockError, match=rf"process {os.getpid()} on .*, for 2 h 3 min; wait for it, or end it"):
        NightLock(tmp_path).acquire()
    assert current_owner(tmp_path).token == "other"  # type: ignore[union-attr]


def test_a_night_of_another_process_holds_until_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(NightLockError, match=f"process {holder.pid} on"):
            NightLock(tmp_path).acquire()
        holder.kill()
        # Still unreaped here, the process is a zombie, which counts as dead.
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with NightLock(tmp_path):
            assert current_owner(tmp_path).pid == os.getpid()  # type: ignore[union-attr]


def test_a_night_in_another_container_holds_though_its_process_cannot_be_seen_from_here(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        # Its number means another process here, or none.
        write_lock(tmp_path, pid=2**22 + 1, process="this boot/17")
        with pytest.raises(NightLockError, match="A night is under way"):
            NightLock(tmp_path).check()
        with pytest.raises(NightLockError, match="A night is under way"):
            NightLock(tmp_path).acquire()
        holder.kill()
        holder.wait()
        with NightLock(tmp_path):
            assert current_owner(tmp_path).pid == os.getpid()  # type: ignore[union-attr]


def test_a_dead_night_of_this_machine_stops_nobody_though_it_had_another_name_then(tmp_path: Path) -> None:
    lock = NightLock(tmp_path)
    lock.acquire()
    record = json.loads((tmp_path / LOCK).read_text())
    lock.release()
    write_lock(tmp_path, **{**record, "host": "3f2a9c0d1e4b"})
    with NightLock(tmp_path):
        assert current_owner(tmp_path).host == socket.gethostname()  # type: ignore[union-attr]
    write_lock(tmp_path, **{**record, "host": "3f2a9c0d1e4b", "process": "another boot/17"})
    with pytest.raises(NightLockError, match="if 3f2a9c0d1e4b runs no night any more, delete"):
        NightLock(tmp_path).acquire()


def test_whether_a_night_runs_is_asked_without_being_taken_for_one(tmp_path: Path) -> None:
    lock = NightLock(tmp_path)
    with lock:
        pass
    for _ in range(2):
        lock.check()
    with lock, pytest.raises(NightLockError):
        NightLock(tmp_path).check()
    NightLock(tmp_path).check()


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    write_lock(tmp_path, process="an earlier boot/17")
    with NightLock(tmp_path):
        assert current_owner(tmp_path).token != "other"  # type: ignore[union-attr]


def test_an_owner_of_whom_only_the_number_is_known_counts_as_alive(tmp_path: Path) -> None:
    write_lock(tmp_path, process="")
    with pytest.raises(NightLockError, match="A night is under way"):
        NightLock(tmp_path).acquire()


def test_a_lock_of_another_machine_is_respected_and_the_remedy_named(tmp_path: Path) -> None:
    write_lock(tmp_path, host="elsewhere", pid=2**22 + 1, process="")
    with pytest.raises(NightLockError, match=r"if elsewhere runs no night any more, delete .*night\.lock"):
        NightLock(tmp_path).acquire()


@pytest.mark.parametrize("jump", [timedelta(days=400), timedelta(seconds=90)])
def test_a_start_in_the_future_does_not_matter_for_who_lives(tmp_path: Path, jump: timedelta) -> None:
    future = (datetime.now(UTC) + jump).isoformat()
    write_lock(tmp_path, started=future)
    with pytest.raises(NightLockError, match=r"since 20.*, which is no time in the past"):
        NightLock(tmp_path).acquire()
    write_lock(tmp_path, started=future, process="dead/1")
    NightLock(tmp_path).acquire()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_names_nobody_is_left_to_a_person(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(NightLockError, match="does not say who holds it: make sure that no night is running"):
        NightLock(tmp_path).acquire()


def test_releasing_leaves_the_lock_of_another_owner_alone(tmp_path: Path) -> None:
    lock = NightLock(tmp_path)
    lock.acquire()
    write_lock(tmp_path)
    lock.release()
    assert current_owner(tmp_path).token == "other"  # type: ignore[union-attr]


RACER = """
import sys
from sleep_pipeline.night_lock import NightLock, NightLockError
sys.stdin.readline()
try:
    NightLock(sys.argv[1]).acquire()
    print("won", flush=True)
except NightLockError:
    print("lost", flush=True)
sys.stdin.read()
"""


def test_of_several_that_find_a_dead_lock_exactly_one_wins(tmp_path: Path) -> None:
    write_lock(tmp_path, process="dead/1")
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        results = [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
        assert sorted(results) == ["lost", "lost", "lost", "won"]
    finally:
        for racer in racers:
            racer.communicate()


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(minutes=61), "1 h 1 min"),
        (timedelta(days=3, minutes=5, seconds=2), "3 d 5 min"),
    ],
)
def test_ages_are_told_in_two_units(age: timedelta, words: str) -> None:
    now = datetime.now(UTC)
    owner = Owner(1, "host", "", (now - age).isoformat(), "t")
    assert owner.describe(now) == f"process 1 on host, for {words}"


def test_an_age_that_cannot_be_told_is_none() -> None:
    now = datetime.now(UTC)
    assert Owner(1, "host", "", "yesterday", "t").age(now) is None
    assert Owner(1, "host", "", "2026-01-01T00:00:00", "t").age(now) is None
