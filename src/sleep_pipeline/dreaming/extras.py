"""What dreaming needs beside the packages that are always installed, checked before any long work."""

from __future__ import annotations

from sleep_pipeline.dreaming.settings import DreamingSettings
from sleep_pipeline.hardware import pick_device, usable_cores


def check_night(settings: DreamingSettings, device: str) -> None:
    """Make sure that a night can dream as its settings say, before it begins.

    Args:
        settings: of the night's dreaming.
        device: `machine.device`.

    Raises:
        ModuleNotFoundError: Ray is needed and not installed.
        ValueError: there are to be more workers than cores or GPUs, or dreams are to be sampled by vLLM.
    """
    if settings.trials.workers:
        check_workers(settings.trials.workers, pick_device(device).type)
    if settings.dreams.engine == "vllm":
        raise ValueError(
            "dreaming.dreams.engine=vllm serves the base model and a LoRA adapter alone, and a night dreams with the "
            "experts of its memory: set transformers"
        )


def check_workers(count: int, device: str = "cpu") -> None:
    """Make sure that so many workers can be had; 0 needs nothing.

    Args:
        count: `dreaming.trials.workers`.
        device: type of the model's device; every worker on `cuda` needs a GPU of its own.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: there are fewer cores or GPUs.
    """
    if not count:
        return
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"dreaming.trials.workers={count} needs Ray ({error}): pip install 'sleep-pipeline[ray]', or set 0 to try "
            "dreams in this process",
            name=error.name,
        ) from error
    if ray.is_initialized():
        found = ray.cluster_resources()
        cores, gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0))
    else:
        cores, gpus = usable_cores(), _gpus() if device == "cuda" else 0
    there, what = (gpus, "GPU") if device == "cuda" else (cores, "core")
    if count > there:
        raise ValueError(
            f"dreaming.trials.workers={count} is more than there is: every worker needs a {what} of its own, and there "
            f"{'is' if there == 1 else 'are'} {there}; set at most that, or 0 to try dreams in this process"
        )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
