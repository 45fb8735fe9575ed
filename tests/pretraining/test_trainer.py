import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sleep_pipeline.pretraining.batches import IGNORED, PackedBatches
from sleep_pipeline.pretraining.model_card import describe_run, model_card
from sleep_pipeline.pretraining.optimizer import PretrainOptimizer, schedule
from sleep_pipeline.pretraining.settings import OptimizerSettings, PretrainSettings
from sleep_pipeline.pretraining.trainer import (
    batch_gradient,
    build_model,
    continued_model,
    fingerprint,
    pretrain,
    weights_digest,
)

CPU = torch.device("cpu")


def _reference_loss(model: Any, batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Weighted mean of the losses, one conversation at a time, unpadded, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    weight = torch.zeros((), dtype=torch.float64)
    for rows in batch:
        for row in range(rows["input_ids"].shape[0]):
            positions = rows["position_ids"][row]
            starts = [*torch.nonzero(positions == 0).flatten().tolist(), len(positions)]
            for start, end in itertools.pairwise(starts):
                logits = model(input_ids=rows["input_ids"][row, start:end][None]).logits[0]
                for at in range(end - start):
                    label = int(rows["labels"][row, start + at])
                    if label != IGNORED:
                        w = rows["weights"][row, start + at].double()
                        total = total - w * torch.log_softmax(logits[at].double(), -1)[label]
                        weight = weight + w
    return total / weight


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_packed_loss_and_gradient_equal_those_of_single_conversations(
    tiny_settings: PretrainSettings, tiny_tokenizer: Any, attention: str
) -> None:
    batch = PackedBatches(tiny_settings, tiny_tokenizer, None)[0]
    model = build_model(tiny_settings.architecture, tiny_tokenizer, 0).double()
    model.set_attn_implementation(attention)
    reference = _reference_loss(model, batch)
    reference.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss = batch_gradient(model, batch, CPU, "fp32", tiny_settings.micro_batch_tokens)
    # The losses are summed in float32, as they are in training.
    assert loss == pytest.approx(float(reference), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


def test_the_schedule_warms_up_holds_and_decays() -> None:
    settings = OptimizerSettings(warmup_share=0.1, decay_share=0.5)
    factors = [schedule(step, 100, settings) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:50] == [1.0] * 41
    assert factors[75] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.03


def test_muon_takes_the_matrices_and_adamw_the_rest(tiny_model: Any) -> None:
    optimizer = PretrainOptimizer(tiny_model, OptimizerSettings(), 10)
    for parameter in tiny_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0)
    kinds = {name.rsplit("/", 1)[0]: name.rsplit("/", 1)[1] for name in optimizer.state()}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == "momentum_buffer"
    assert kinds["model.embed_tokens.weight"] != "momentum_buffer"
    assert set(kinds) == {name for name, _ in tiny_model.named_parameters()}


def _run(settings: PretrainSettings, tokenizer: Any, folder: Path, run: str = "run") -> tuple[Any, Any]:
    model = build_model(settings.architecture, tokenizer, settings.seed)
    return pretrain(settings, PackedBatches(settings, tokenizer, None), model, folder, run), model


@pytest.mark.slow
def test_training_lowers_the_loss(tiny_settings: PretrainSettings, tiny_tokenizer: Any, tmp_path: Path) -> None:
    settings = tiny_settings.model_copy(update={"steps": 30, "checkpoint_every": 30})
    progress, _ = _run(settings, tiny_tokenizer, tmp_path)
    assert progress.losses[0] == pytest.approx(math.log(512), rel=0.1)
    assert sum(progress.losses[-5:]) / 5 < 0.85 * progress.losses[0]


class _StopError(Exception):
    pass


@pytest.mark.slow
def test_a_run_that_was_cut_short_ends_like_an_unbroken_one(
    tiny_settings: PretrainSettings, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    whole, whole_model = _run(tiny_settings, tiny_tokenizer, tmp_path / "whole")

    class Breaking(PackedBatches):
        def __getitem__(self, index: int) -> Any:
            if index == 5:
                raise _StopError
            return super().__getitem__(index)

    model = build_model(tiny_settings.architecture, tiny_tokenizer, tiny_settings.seed)
    with pytest.raises(_StopError):
        pretrain(tiny_settings, Breaking(tiny_settings, tiny_tokenizer, None), model, tmp_path / "cut", "run")
    resumed, resumed_model = _run(tiny_settings, tiny_tokenizer, tmp_path / "cut")
    assert resumed.losses == whole.losses
    for name, parameter in whole_model.named_parameters():
        assert torch.equal(parameter, resumed_model.get_parameter(name)), name


@pytest.mark.slow
def test_a_run_can_start_from_a_model_and_says_so(
    tiny_settings: PretrainSettings, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    first, model = _run(tiny_settings, tiny_tokenizer, tmp_path / "first")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    record = describe_run(tiny_settings, {}, "first", first, model, None)
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(record))
    further = tiny_settings.model_copy(update={"start_from": str(tmp_path / "model"), "seed": 1})
    started, before = continued_model(further)
    assert all(torch.equal(p, started.get_parameter(name)) for name, p in model.named_parameters())
    assert before == record
    run = fingerprint(further, {}, tiny_tokenizer, before)
    assert run != fingerprint(further, {}, tiny_tokenizer)
    batches = PackedBatches(further, tiny_tokenizer, None)
    progress = pretrain(further, batches, started, tmp_path / "second", run)
    card = model_card(describe_run(further, {}, run, progress, started, None, before), {"skills": {}})
    assert record["weights_sha256"] in card and weights_digest(started) in card


def test_a_model_of_another_shape_is_not_started_from(
    tiny_settings: PretrainSettings, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    build_model(tiny_settings.architecture, tiny_tokenizer, 0).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    deeper = tiny_settings.architecture.model_copy(update={"num_layers": 1 + tiny_settings.architecture.num_layers})
    settings = tiny_settings.model_copy(update={"start_from": str(tmp_path), "architecture": deeper})
    with pytest.raises(ValueError, match=r"not the model that pretrain\.architecture describes"):
        continued_model(settings)


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_not_continued(
    tiny_settings: PretrainSettings, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    _run(tiny_settings, tiny_tokenizer, tmp_path)
    longer = tiny_settings.model_copy(update={"steps": 8})
    progress, _ = _run(longer, tiny_tokenizer, tmp_path, run="another")
    fresh, _ = _run(longer, tiny_tokenizer, tmp_path / "fresh", run="another")
    assert progress.losses == fresh.losses


def test_the_fingerprint_tells_apart_what_changes_the_outcome_and_nothing_else(
    tiny_settings: PretrainSettings, tiny_tokenizer: Any
) -> None:
    base = fingerprint(tiny_settings, {"a.txt": "1"}, tiny_tokenizer)
    assert fingerprint(tiny_settings.model_copy(update={"threads": 1}), {"a.txt": "1"}, tiny_tokenizer) == base
    assert fingerprint(tiny_settings.model_copy(update={"seed": 9}), {"a.txt": "1"}, tiny_tokenizer) != base
    assert fingerprint(tiny_settings, {"a.txt": "2"}, tiny_tokenizer) != base


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
    tiny_settings: PretrainSettings, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    class Poisoned(PackedBatches):
        def __getitem__(self, index: int) -> Any:
            batch = super().__getitem__(index)
            if index == 3:
                batch[0]["weights"][0, 0] = float("nan")
            return batch

    model = build_model(tiny_settings.architecture, tiny_tokenizer, 0)
    with pytest.raises(FloatingPointError, match="at step 3; lower"):
        pretrain(tiny_settings, Poisoned(tiny_settings, tiny_tokenizer, None), model, tmp_path, "run")
    weights = load_file(tmp_path / "step_0000002" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


_KILLABLE = """
import sys
from pathlib import Path
import torch
from sleep_pipeline.pretraining.batches import PackedBatches
from sleep_pipeline.pretraining.settings import PretrainSettings
from sleep_pipeline.pretraining.tokenizer import train_tokenizer, vocabulary_texts
from sleep_pipeline.pretraining.trainer import build_model, pretrain
import json

folder = Path(sys.argv[1])
settings = PretrainSettings.model_validate_json((folder / "settings.json").read_text())
tokenizer = train_tokenizer(vocabulary_texts(settings, None), settings.architecture.vocab_size, 1024)
model = build_model(settings.architecture, tokenizer, settings.seed)
progress = pretrain(settings, PackedBatches(settings, tokenizer, None), model, folder / "progress", "run")
(folder / "losses.json").write_text(json.dumps(progress.losses))
"""


@pytest.mark.slow
def test_kill_nine_in_the_middle_then_the_same_command_gives_the_same_final_loss(
    tiny_settings: PretrainSettings, tmp_path: Path
) -> None:
    settings = tiny_settings.model_copy(update={"steps": 60, "checkpoint_every": 10, "threads": 1})

    def start(folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        (folder / "settings.json").write_text(settings.model_dump_json())
        return subprocess.Popen([sys.executable, "-c", _KILLABLE, str(folder)], stderr=subprocess.PIPE)

    assert start(tmp_path / "whole").wait() == 0
    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("progress/step_*[0-9]/state.json")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "losses.json").exists()
    assert start(tmp_path / "killed").wait() == 0
    whole, resumed = (json.loads((tmp_path / name / "losses.json").read_text()) for name in ("whole", "killed"))
    assert len(resumed) == 60
    assert resumed[-1] == pytest.approx(whole[-1], abs=1e-6)
    assert resumed == whole
