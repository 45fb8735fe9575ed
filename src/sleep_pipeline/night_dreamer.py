"""The dreamer of a life: the LoRA adapter that a night's checkpoint keeps beside the memory.

A checkpoint of a life without one, such as every checkpoint of a night with `dreaming.rest_em.rounds: 0` and of older
releases, has neither the folder `dreamer` nor an entry of that name in its manifest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_pipeline.dreaming.settings import DREAMER, Mix, RestEmSettings
from sleep_pipeline.registry import MANIFEST

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_WEIGHTS = "adapter_model.safetensors"
_FORM = ("rank", "alpha", "targets")


@dataclass(frozen=True)
class DreamerPart:
    """The dreamer as a part of a checkpoint folder.

    Attributes:
        dreamer: the adapter on its network, or a folder that holds one in its folder `dreamer`.
        form: for the manifest: what of it cannot change, the kinds that it dreams of more or less often (`mix_of`),
            and, of one that lies in a folder, the SHA-256 of its weights.
    """

    dreamer: PeftModel | Path
    form: Mapping[str, Any]

    def save_pretrained(self, save_directory: str) -> None:
        """Write the dreamer into its folder there."""
        target = Path(save_directory) / DREAMER
        if isinstance(self.dreamer, Path):
            shutil.copytree(self.dreamer / DREAMER, target)
            return
        from sleep_pipeline.memory import save_beside

        # PEFT puts an adapter into a folder of its name, and a model card beside that.
        partial = Path(save_directory) / f"{DREAMER}.partial"
        save_beside(self.dreamer, partial)
        (partial / DREAMER).rename(target)
        shutil.rmtree(partial)


def form_of(settings: RestEmSettings, mix: Mix) -> dict[str, Any]:
    """What of a dreamer cannot change while a life has it, and the kinds that it dreams of more or less often."""
    kinds = [{"kind": kind, "ask": ask, "times": times} for (kind, ask), times in mix.items()]
    return {**settings.model_dump(mode="json", include=set(_FORM)), "mix": kinds}


def mix_of(dreamer: DreamerPart | None) -> Mix:
    """The kinds that a kept dreamer dreams of more or less often; those of earlier releases have none."""
    kinds = [] if dreamer is None else dreamer.form.get("mix", [])
    return {(found["kind"], found["ask"]): float(found["times"]) for found in kinds}


def kept_dreamer(folder: Path | None) -> DreamerPart | None:
    """The dreamer that a checkpoint or another folder with a manifest keeps; None if it keeps none.

    Raises:
        ValueError: it is missing, or another one than the manifest says.
    """
    if folder is None:
        return None
    record: dict[str, Any] | None = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get(DREAMER)
    if record is None:
        return None
    path = folder / DREAMER / _WEIGHTS
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    if found is None or record.get("sha256", found) != found:
        wrong = "is missing" if found is None else f"has the digest {found}, not {record['sha256']}"
        raise ValueError(f"{path} {wrong}, though {MANIFEST} names it: restore the folder with `dvc checkout`")
    return DreamerPart(folder, {**record, "sha256": found})


def open_dreamer(model: PreTrainedModel, settings: RestEmSettings, checkpoint: Path | None, seed: int) -> PeftModel:
    """Put the dreamer that a checkpoint keeps on a network with a memory, or a new one, which dreams as the model does.

    Args:
        model: with a memory.
        settings: of the adapter's form.
        checkpoint: folder of the night that tonight grows from; None for the base model.
        seed: of a new one's first weights.

    Raises:
        ValueError: the checkpoint's dreamer has another form, or is not what the manifest says.
    """
    from sleep_pipeline.dreaming.dreamer import new_dreamer
    from sleep_pipeline.memory import load_beside

    kept = kept_dreamer(checkpoint)
    if kept is None or checkpoint is None:
        return new_dreamer(model, settings, seed)
    asked = form_of(settings, {})
    differing = [name for name in _FORM if kept.form[name] != asked[name]]
    if differing:
        has = "; ".join(f"{name} {kept.form[name]!r}, asked for {asked[name]!r}" for name in differing)
        back = ",".join(f"dreaming.rest_em.{name}={json.dumps(kept.form[name])}" for name in differing)
        raise ValueError(
            f"the dreamer of {checkpoint} is not that of the settings ({has}): a dreamer keeps its form for life; set "
            f"{back}, dream without it by dreaming.rest_em.rounds=0, or begin a new life in another folder (globals: "
            "life)"
        )
    return load_beside(model, checkpoint / DREAMER, DREAMER).eval()
