from pathlib import Path

import pytest
import torch
from tiny_models import fill, learn, three_levels, tokens, with_memory
from torch import nn

from sleep_pipeline.memory import Consolidation, consolidation, describe, plot_slots, reset, state_of, trace_routing
from sleep_pipeline.memory.describe import slots_over_nights


def lived() -> nn.Module:
    model = with_memory(three_levels())
    learn(model, 1, seed=1, night=1)
    learn(model, 1, seed=2, night=2)
    Consolidation(model, 1, 2, night=2).begin()
    fill(model, 2, seed=3)
    return model


def test_the_table_tells_a_person_what_the_memory_holds() -> None:
    model = lived()
    with trace_routing(model) as trace:
        model(input_ids=tokens())
    text = str(describe(model, trace))
    assert "level 1 (period 2; own MLP, unmoved): 2 active, 0 training, 2 free slots of rank 3" in text
    assert "level 3 (never changes; pretrained MLP): 0 active, 0 training, 4 free slots" in text
    assert "level 1 -> level 2, slot 0, night 2" in text
    assert "training" in text and "%" in text


def test_norms_and_openness_are_those_of_the_tensors() -> None:
    model = lived()
    with trace_routing(model) as trace:
        model(input_ids=tokens())
    summary = describe(model, trace)
    training = next(slot for slot in summary.slots if slot.state == "training")
    layers = [model.get_submodule(f"base_model.model.model.layers.{i}.mlp").levels("default")[1] for i in range(2)]
    expected = sum(float(torch.linalg.matrix_norm(level.new_down.T @ level.new_up)) for level in layers) / 2
    assert training.norm == pytest.approx(expected, rel=1e-5)
    assert training.openness == pytest.approx(float(trace.openness(2)[0]))
    assert 0 < training.openness < 1


def test_the_numbers_fit_a_logger() -> None:
    flat = describe(lived()).to_dict()
    assert flat["level_1/active"] == 2.0
    assert flat["level_2/training"] == 1.0
    assert flat["level_2/slot_0/norm"] > 0
    assert all(isinstance(value, float) for value in flat.values())
    assert not any("openness" in name for name in flat), "nothing was traced"


def test_the_history_shows_each_slots_night() -> None:
    model = with_memory(three_levels())
    for night in range(1, 5):
        for sender, receiver in model.peft_config["default"].schedule().due(night):
            with consolidation(model, sender, receiver, night=night) as sleep:
                sleep.commit()
    events = state_of(model).table.events
    held = slots_over_nights(events, 1, 3)
    assert torch.equal(held.nan_to_num(-1), torch.tensor([[1.0, -1, 3, -1], [-1.0] * 4, [-1.0] * 4]))
    held = slots_over_nights(events, 2, 3)
    assert torch.equal(held.nan_to_num(-1), torch.tensor([[-1.0, 2, 2, -1], [-1.0, -1, -1, -1], [-1.0] * 4]))


def test_what_is_freed_by_hand_is_free_from_the_last_night_on() -> None:
    model = with_memory(three_levels())
    learn(model, 1, seed=1, night=1)
    learn(model, 1, seed=2, night=2)
    reset(model, 1, [0])
    learn(model, 3, seed=3, night=3)
    held = slots_over_nights(state_of(model).table.events, 1, 2)
    assert torch.equal(held.nan_to_num(-1), torch.tensor([[1.0, -1, -1], [-1, 2, 2]]))


@pytest.mark.slow
def test_the_plot_is_written(tmp_path: Path) -> None:
    figure = plot_slots(lived())
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == ["level 1", "level 2", "level 3"]
    figure.savefig(tmp_path / "slots.png")
    assert (tmp_path / "slots.png").stat().st_size > 1000
    plot_slots(with_memory(three_levels())).savefig(tmp_path / "empty.png")
