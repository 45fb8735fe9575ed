"""Devices, precision and memory of the machine that computes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def keep_freed_memory() -> None:
    """Have glibc keep freed tensors' memory instead of handing it back to the system after every operation.

    Fresh pages cost a CPU training step 10 to 15 percent of its time. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 256 * 2**20)


def hand_back_memory() -> None:
    """Hand back to the system what glibc keeps, which after steps of many shapes is half of a process's memory."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def usable_cores() -> int:
    """The number of cores this process may use, which a container may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one; any other name is taken as it is."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast on the device, or nothing for fp32."""
    import torch

    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def software() -> dict[str, str]:
    """Versions of what computes, the kind of machine, and the threads it uses."""
    import peft
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
