"""Nights that are killed at random moments: does the same command finish them, with the same result?

    python benchmarks/random_kills.py --json build/random_kills.json     # 30 kills, half an hour on one core
    python benchmarks/random_kills.py --quick                            # 1 kill, about a minute

One smoke night of the bundled memories is lived unbroken and timed. Then every trial starts the same night in a folder
of its own, kills it with SIGKILL at a moment drawn evenly from that time, gives the same command again until it ends by
itself, and compares the registered checkpoint's weights and replay with the unbroken night's, byte by byte. A night
that ends before its moment is compared, too, and does not count as a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sleep_pipeline.evaluation.statistics import mean_interval
from sleep_pipeline.registry import NightRegistry

ROOT = Path(__file__).parents[1]
COMMAND = [
    sys.executable, "-m", "sleep_pipeline", "run", "--env=smoke", "--pipelines=sleep", "--params=machine.threads=1",
]  # fmt: skip
COMPARED = ("adapter_model.safetensors", "replay.safetensors")


def project(folder: Path) -> Path:
    """A copy of what a night needs, without any night in it."""
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    (folder / "conf" / "local").mkdir()
    for name in ("memories", "probes"):
        shutil.copytree(ROOT / "data/01_raw" / name, folder / "data/01_raw" / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The night's command, its output in a file."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def outcome(folder: Path) -> dict[str, bytes]:
    """What must be equal: weights and replay of the first night, which must be registered.

    A night that was killed when it was over is not finished by the same command, which lives the next one.
    """
    models = folder / "data/06_models/smoke"
    night = min(NightRegistry(models).nights())
    checkpoint = models / f"night_{night:03d}"
    return {name: (checkpoint / name).read_bytes() for name in COMPARED}


def trial(number: int, seconds: float, expected: dict[str, bytes]) -> dict[str, Any]:
    """Kill one night at a random moment, finish it, and compare."""
    moment = random.Random(f"kill/{number}").uniform(0, seconds)
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        folder = project(Path(place) / "night")
        process = start(folder)
        try:
            process.wait(moment)
            killed = False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed = True
        reached = sorted(path.name for path in (folder / "data").glob("0[2-8]*/smoke/night_001/*"))
        code = start(folder).wait() if killed else process.returncode
        equal = code == 0 and outcome(folder) == expected
        log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    found = {"moment": moment, "killed": killed, "files": len(reached), "finished": code == 0, "equal": equal}
    return found | ({} if equal else {"log": log[-2000:]})


def main() -> None:
    """Run, print, and write the JSON after every kill if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 kill")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    kills = 1 if arguments.quick else arguments.kills
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        folder = project(Path(place) / "whole")
        began = time.perf_counter()
        if start(folder).wait():
            sys.exit((folder / "log.txt").read_text(encoding="utf-8")[-3000:])
        seconds = time.perf_counter() - began
        expected = outcome(folder)
    print(f"unbroken: {seconds:.0f} s", flush=True)
    trials: list[dict[str, Any]] = []
    while sum(one["killed"] for one in trials) < kills:
        trials.append(trial(len(trials), seconds, expected))
        print(len(trials), {name: value for name, value in trials[-1].items() if name != "log"}, flush=True)
        if arguments.json:
            write(arguments.json, trials, seconds)
    failed = [one for one in trials if not one["equal"]]
    print(f"{len(trials) - len(failed)} of {len(trials)} finish and equal the unbroken night")
    for one in failed:
        print(one["log"])


def write(path: Path, trials: list[dict[str, Any]], seconds: float) -> None:
    """The figures so far."""
    killed = [one for one in trials if one["killed"]]
    share = mean_interval([float(one["equal"]) for one in killed or trials])
    figures = {
        "equal_share": {"value": share.value, "unit": "share", "interval": [share.low, share.high]},
        "kills": {"value": len(killed), "unit": "nights", "interval": [len(killed), len(killed)]},
    }
    protocol = {
        "night": "smoke, first of the bundled week, one thread",
        "unbroken_seconds": seconds,
        "interval": "95 %, Wilson, over the nights that were killed before they ended",
        "machine": platform.machine(),
        "trials": trials,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": figures, "protocol": protocol}, indent=2) + "\n")


if __name__ == "__main__":
    main()
