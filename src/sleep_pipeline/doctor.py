"""What `sleep-pipeline doctor` looks at: whether this machine can run a night, and how fast."""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from sleep_pipeline.environment import TELEMETRY_SWITCHES
from sleep_pipeline.hardware import usable_cores

# Without one of these no night starts; their versions are also what a bug report needs.
REQUIRED_PACKAGES = (
    "accelerate",
    "datasets",
    "dvc",
    "great-expectations",
    "kedro",
    "kedro-datasets",
    "mlflow",
    "peft",
    "torch",
    "transformers",
    "trl",
)
OFF_VALUES = {"false", "0", "no", "off"}
GIB = 2**30
# A smoke night of the embedded model; below it the first phase already swaps.
MINIMUM_MEMORY_GIB = 4.0
MINIMUM_DISK_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty unless a night cannot run without it."""

    topic: str
    value: str
    remedy: str = ""


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    for name in REQUIRED_PACKAGES:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "not installed", "run `make setup`")


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the bytes of memory this process may use: the machine's, or less in a container."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(cgroup.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return total


def _resources(project: Path) -> Iterator[Finding]:
    yield Finding("cores", str(usable_cores()))
    memory = memory_limit() / GIB
    remedy = "" if memory >= MINIMUM_MEMORY_GIB else f"a night needs {MINIMUM_MEMORY_GIB:g} GiB"
    yield Finding("memory", f"{memory:.1f} GiB", remedy)
    disk = shutil.disk_usage(project).free / GIB
    remedy = "" if disk >= MINIMUM_DISK_GIB else f"free {MINIMUM_DISK_GIB:g} GiB for checkpoints"
    yield Finding("free disk", f"{disk:.1f} GiB", remedy)
    if not os.access(project, os.W_OK):
        yield Finding("project folder", f"{project} is read-only", "a night writes below data/")


def _best_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def bf16_speedup(device: str = "cpu", size: int = 512) -> float:
    """Return how many times faster a `size` x `size` product is in bfloat16 than in float32."""
    import torch

    def product(dtype: torch.dtype) -> Callable[[], float]:
        a = torch.ones(size, size, dtype=dtype, device=device)
        # Reading one element waits for a GPU to be done.
        return lambda: float((a @ a)[0, 0])

    return _best_seconds(product(torch.float32)) / _best_seconds(product(torch.bfloat16))


def _device() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("device", f"torch cannot be imported: {error}", "run `make setup`")
        return
    if torch.cuda.is_available():
        device, name = "cuda", torch.cuda.get_device_name()
    else:
        device, name = "cpu", f"CPU, {torch.get_num_threads()} threads"
        if torch.backends.mps.is_available():
            name += "; the Apple GPU has no float64 and stays idle"
    yield Finding("device", name)
    ratio = bf16_speedup(device)
    yield Finding("bf16", f"{ratio:.1f} times the speed of fp32" + ("" if ratio > 1.2 else ": not worth it here"))


def _embedded_model(package: Path) -> Finding:
    folder = package / "embedded"
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        size = sum(path.stat().st_size for path in weights) / 2**20
        return Finding("embedded model", f"{size:.1f} MiB")
    return Finding("embedded model", "absent", "run `kedro run --pipelines=pretrain`, or name a model of your own")


def telemetry_findings(project: Path) -> Iterator[Finding]:
    """Yield what stands between this machine and a tool that would phone home."""
    loud = []
    for name in TELEMETRY_SWITCHES:
        value = os.environ.get(name, "")
        # GX and Ray name what is enabled, all others what is disabled.
        wants_off = name.endswith("_ENABLED")
        if (value.lower() in OFF_VALUES) != wants_off or not value:
            loud.append(name)
    if (consent := project / ".telemetry").exists() and "false" not in consent.read_text(encoding="utf-8"):
        loud.append(".telemetry")
    yield Finding("telemetry", "off" if not loud else f"on or undecided: {', '.join(loud)}")


def examine(project: Path, tracking: str) -> Iterator[Finding]:
    """Yield every finding about the project at `project`, whose runs go to the address `tracking`."""
    yield from _versions()
    yield from _resources(project)
    yield from _device()
    yield _embedded_model(Path(__file__).parent)
    yield Finding("tracking", tracking)
    yield from telemetry_findings(project)
    if shutil.which("git") is None:
        yield Finding("git", "not found: with git, runs record the commit they used")
