"""PEFT's own interface, and trainers that only know that."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from tiny_models import (
    VOCAB,
    build,
    fill,
    learn,
    live_a_day,
    logits,
    one_level,
    same,
    snapshot,
    three_levels,
    tokens,
    with_memory,
)
from torch import nn
from transformers import AutoModelForCausalLM

from sleep_pipeline.memory import (
    BlockError,
    Consolidation,
    SlotError,
    WakeUpdates,
    activate,
    add_beside,
    load_beside,
    save_beside,
    states_of,
    teacher_view,
    unlock,
)
from sleep_pipeline.memory.layer import ContinuumLayer

LORA = LoraConfig(r=2, target_modules=["q_proj", "gate_proj", "down_proj"], init_lora_weights=False)


def test_disable_adapter_gives_the_bare_model_and_back() -> None:
    model = with_memory(one_level())
    learn(model)
    unlock(model, 1)
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build()))
    assert torch.equal(logits(model), expected)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == training


def test_gradients_accumulated_so_far_survive_disabling() -> None:
    model = with_memory(one_level())
    unlock(model, 1)
    fill(model, 1, seed=1)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with model.disable_adapter():
        logits(model)
    assert before and all(torch.equal(model.get_parameter(name).grad, grad) for name, grad in before.items())


def test_peft_can_report_on_the_memory() -> None:
    model = with_memory(one_level())
    learn(model)
    status = model.get_model_status()
    assert status.enabled and status.active_adapters == ["default"] and status.num_adapter_layers == 2
    assert [layer.module_type for layer in model.get_layer_status()] == ["ContinuumLayer"] * 2


def test_trainable_parameters_are_those_of_the_expert_in_training(capsys: pytest.CaptureFixture[str]) -> None:
    model = with_memory(one_level(rank=3))
    unlock(model, 1)
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == 2 * (2 * 3 * 16 + 16 + 1), "A, B, key and offset in each of two layers"
    model.print_trainable_parameters()
    assert f"trainable params: {trainable}" in capsys.readouterr().out


def test_merging_is_refused_and_unloading_gives_the_base_model_back() -> None:
    model = with_memory(one_level())
    learn(model)
    expected = logits(model)
    for merge in (model.merge_and_unload, model.merge_adapter, model.unmerge_adapter):
        with pytest.raises(ValueError, match="cannot be merged into the base weights"):
            merge()
    assert torch.equal(logits(model), expected)
    base = model.unload()
    assert torch.equal(logits(base), logits(build()))
    assert not any(isinstance(module, ContinuumLayer) for module in base.modules())
    assert same(snapshot(base), snapshot(build()))
    assert torch.equal(logits(get_peft_model(base, one_level())), logits(build()))


def test_adapters_are_saved_loaded_switched_and_deleted_apart(tmp_path: Path) -> None:
    model = with_memory(one_level())
    model.add_adapter("other", three_levels())
    learn(model)
    first = logits(model)
    model.set_adapter("other")
    assert torch.equal(logits(model), logits(build()))
    learn(model, 3, seed=5)
    second = logits(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path))
    assert torch.equal(logits(loaded), first)
    loaded.load_adapter(str(tmp_path / "other"), "renamed")
    loaded.set_adapter("renamed")
    assert torch.equal(logits(loaded), second)
    loaded.delete_adapter("renamed")
    loaded.set_adapter("default")
    assert torch.equal(logits(loaded), first)
    assert sorted(states_of(loaded)) == ["default"]


@pytest.mark.parametrize(("layers", "others"), [([1], [0]), ([0, 1], [1]), ([1], [0, 1])])
def test_two_memories_may_sit_in_different_layers(layers: list[int], others: list[int], tmp_path: Path) -> None:
    model = with_memory(one_level(layers_to_transform=layers))
    model.add_adapter("other", one_level(layers_to_transform=others))
    learn(model)
    first = logits(model)
    model.set_adapter("other")
    assert torch.equal(logits(model), logits(build()))
    learn(model, seed=5)
    second = logits(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path))
    loaded.load_adapter(str(tmp_path / "other"), "other")
    for name, expected in (("default", first), ("other", second)):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), expected)


def test_adapters_made_from_one_configuration_object_keep_their_own_state() -> None:
    config = one_level()
    model = with_memory(config)
    learn(model)
    model.add_adapter("other", model.peft_config["default"])
    unlock(model, 1, adapter_name="other")
    assert states_of(model)["default"].table.training() is None
    assert model.peft_config["default"].state != model.peft_config["other"].state


def test_a_memory_made_from_the_configuration_of_another_begins_empty(tmp_path: Path) -> None:
    model = with_memory(one_level())
    learn(model)
    model.save_pretrained(str(tmp_path))
    for config in (model.peft_config["default"], peft.PeftConfig.from_pretrained(str(tmp_path))):
        fresh = with_memory(config)
        assert states_of(fresh)["default"].table.active(1) == ()
        assert unlock(fresh, 1) == 0
    assert states_of(model)["default"].table.active(1) == (0,)


def test_a_loaded_memory_can_be_taught_on(tmp_path: Path) -> None:
    model = with_memory(one_level())
    learn(model)
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path))
    expected = logits(loaded)
    assert unlock(loaded, 1) == 1
    assert torch.equal(logits(loaded), expected)
    loaded(input_ids=tokens(), labels=tokens()).loss.backward()
    fill(loaded, 1, seed=3)
    activate(loaded, 1)
    assert not torch.equal(logits(loaded), expected)


def test_loading_weights_again_brings_their_state_along(tmp_path: Path) -> None:
    model = with_memory(one_level())
    unlock(model, 1)
    fill(model, 1, seed=1)
    model.save_pretrained(str(tmp_path))
    checkpoint = logits(model)
    activate(model, 1)
    learn(model, seed=2)
    model.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert torch.equal(logits(model), checkpoint)
    assert states_of(model)["default"].table.training() == (1, 0)


def test_a_memory_of_another_base_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = with_memory(one_level())
    learn(model)
    model.save_pretrained(str(tmp_path))
    other = build()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    before, out = snapshot(other), logits(other)
    with pytest.raises(ValueError, match="made for a base model with digest"):
        peft.PeftModel.from_pretrained(other, str(tmp_path))
    assert same(snapshot(other), before)
    assert torch.equal(logits(other), out)
    assert not any(isinstance(module, ContinuumLayer) for module in other.modules())
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    config.base_digest = None
    forced = peft.PeftModel.from_pretrained(other, str(tmp_path), config=config)
    assert not torch.equal(logits(forced), out)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (lambda: one_level(rank=17), ValueError, "rank 17, more than the model's hidden size 16"),
        (lambda: one_level(layers_to_transform=[2]), ValueError, r"layers \[2\].*from 0 to 1"),
        (lambda: one_level(target_modules="nothing"), ValueError, "not found in the base model"),
    ],
)
def test_a_memory_that_does_not_fit_the_model_is_refused_and_changes_nothing(
    config: object, error: type[Exception], message: str
) -> None:
    model = build()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        get_peft_model(model, config())
    assert same(snapshot(model), before)


def test_a_model_without_mlp_blocks_is_refused_and_changes_nothing() -> None:
    model = build()
    for layer in model.model.layers:
        layer.mlp = nn.Identity()
    before = snapshot(model)
    with pytest.raises(BlockError, match="mlp \\(Identity\\): too few weight matrices"):
        get_peft_model(model, one_level())
    assert same(snapshot(model), before)


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    model = with_memory(one_level())
    learn(model)
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    for changes, message in (
        ({"rank": 2}, "should have shape"),
        ({"num_slots": 5}, "slots a level"),
        ({"colour": "blue"}, "a memory level has no colour"),
    ):
        record = json.loads(json.dumps(saved))
        record["levels"][0].update(changes)
        path.write_text(json.dumps(record))
        with pytest.raises((ValueError, SlotError), match=message):
            peft.PeftModel.from_pretrained(build(), str(tmp_path))


def test_a_memory_of_a_model_whose_vocabulary_was_resized_is_loaded_onto_the_base_model(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, one_level())
    learn(model)
    expected = logits(model)
    model.get_base_model().resize_token_embeddings(VOCAB + 8)
    with pytest.warns(UserWarning, match="embedding layer has been resized"):
        model.save_pretrained(str(tmp_path / "memory"))
    loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path / "memory"))
    assert torch.equal(logits(loaded), expected)


def test_only_some_layers_may_carry_a_memory(tmp_path: Path) -> None:
    model = with_memory(one_level(layers_to_transform=[1]))
    learn(model)
    names = [name for name, module in model.named_modules() if isinstance(module, ContinuumLayer)]
    assert names == ["base_model.model.model.layers.1.mlp"]
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(peft.PeftModel.from_pretrained(build(), str(tmp_path))), logits(model))


class TestLoraBeside:
    def lora_alone(self) -> nn.Module:
        base = build()
        torch.manual_seed(3)
        return get_peft_model(base, LORA, adapter_name="dreamer")

    def both(self) -> tuple[nn.Module, peft.PeftModel]:
        model = with_memory(three_levels())
        learn(model, 3)
        torch.manual_seed(3)
        return model, add_beside(model, LORA, "dreamer")

    def test_both_take_part_and_each_is_switched_alone(self) -> None:
        model, dreamer = self.both()
        memory_alone = with_memory(three_levels())
        learn(memory_alone, 3)
        together = logits(model)
        assert torch.equal(logits(dreamer), together)
        with dreamer.disable_adapter():
            assert torch.equal(logits(model), logits(memory_alone))
        with model.disable_adapter():
            assert torch.equal(logits(model), logits(self.lora_alone()))
        assert torch.equal(logits(model), together)

    def test_lora_reaches_the_maps_inside_the_wrapped_mlp(self) -> None:
        _, dreamer = self.both()
        names = {name for name, _ in dreamer.named_parameters() if "lora_A" in name}
        assert any(".mlp.base_layer.gate_proj.lora_A" in name for name in names)

    def test_each_is_saved_as_if_the_other_were_not_there(self, tmp_path: Path) -> None:
        model, dreamer = self.both()
        save_beside(dreamer, tmp_path / "lora")
        model.save_pretrained(str(tmp_path / "memory"))
        alone = peft.PeftModel.from_pretrained(build(), str(tmp_path / "lora" / "dreamer"))
        assert torch.equal(logits(alone), logits(self.lora_alone()))
        loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path / "memory"))
        with dreamer.disable_adapter():
            assert torch.equal(logits(loaded), logits(model))
        load_beside(loaded, tmp_path / "lora" / "dreamer", "dreamer")
        assert torch.equal(logits(loaded), logits(model))

    def test_saving_one_asks_the_hub_for_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, dreamer = self.both()
        dreamer.peft_config["dreamer"].base_model_name_or_path = "someone/on-the-hub"
        asked: list[object] = []
        monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *args: asked.append(args))
        save_beside(dreamer, tmp_path)
        assert not asked and (tmp_path / "dreamer" / "adapter_model.safetensors").is_file()

    def test_training_one_leaves_the_other_alone(self) -> None:
        model, dreamer = self.both()
        unlock(model, 3)
        fill(model, 3, seed=8)
        before = snapshot(model)
        dreamer.set_adapter("dreamer")
        lora = [p for name, p in model.named_parameters() if "lora_" in name]
        assert all(p.requires_grad for p in lora)
        for parameter in lora:
            parameter.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        changed = {name for name, value in snapshot(model).items() if not torch.equal(value, before[name])}
        assert changed and all(".new_" in name for name in changed)

    def test_the_memory_can_come_second(self, tmp_path: Path) -> None:
        dreamer = self.lora_alone()
        trained = {name for name, p in dreamer.named_parameters() if p.requires_grad}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = get_peft_model(dreamer.get_base_model(), three_levels())
        assert torch.equal(logits(model), logits(self.lora_alone()))
        learn(model, 3)
        assert trained == {
            name.replace(".mlp.base_layer.", ".mlp.") for name, p in dreamer.named_parameters() if p.requires_grad
        }
        model.save_pretrained(str(tmp_path))
        loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path))
        with dreamer.disable_adapter():
            assert torch.equal(logits(loaded), logits(model))
        assert loaded.peft_config["default"].base_digest == model.peft_config["default"].base_digest

    def test_unloading_the_memory_leaves_the_lora(self) -> None:
        model, dreamer = self.both()
        model.unload()
        assert torch.equal(logits(dreamer), logits(self.lora_alone()))

    @pytest.mark.parametrize("merge", [False, True])
    def test_unloading_the_lora_leaves_the_memory(self, merge: bool) -> None:
        model, dreamer = self.both()
        together, memory_alone = logits(model), with_memory(three_levels())
        learn(memory_alone, 3)
        if merge:
            dreamer.merge_and_unload()
            torch.testing.assert_close(logits(model), together)
        else:
            dreamer.unload()
            assert torch.equal(logits(model), logits(memory_alone))
        assert {name for name, _ in model.named_parameters()} == set(snapshot(memory_alone))

    def test_the_lora_is_merged_and_unmerged_under_the_memory(self) -> None:
        model, dreamer = self.both()
        together = logits(model)
        dreamer.merge_adapter()
        assert all(module.merged for module in dreamer.modules() if isinstance(module, LoraLayer))
        torch.testing.assert_close(logits(model), together)
        dreamer.unmerge_adapter()
        torch.testing.assert_close(logits(model), together)
        with pytest.raises(ValueError, match="cannot be merged into the base weights"):
            model.merge_and_unload()


def test_a_memory_injected_without_a_peft_model_obeys_peft_and_works() -> None:
    model = inject_adapter_in_model(one_level(), build())
    learn(model)
    expected = logits(model)
    assert not torch.equal(expected, logits(build()))
    for module in model.modules():
        if isinstance(module, ContinuumLayer):
            module.enable_adapters(False)
    assert torch.equal(logits(model), logits(build()))


@pytest.mark.slow
def test_trl_trains_only_the_expert_and_resumes_exactly(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"input_ids": tokens(1, 8, seed=seed)[0].tolist()} for seed in range(16)])

    def run(steps: int, name: str, resume: str | None = None) -> nn.Module:
        model = with_memory(three_levels())
        learn(model, 1)
        updates = WakeUpdates(model)
        live_a_day(model, updates)
        Consolidation(model, 1, 2, updates=updates).begin()
        config = SFTConfig(
            output_dir=str(tmp_path / name),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        )
        tokenizer = whitespace_tokenizer()
        trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = run(4, "whole")
    start = with_memory(three_levels())
    learn(start, 1)
    changed = {
        name
        for name, value in snapshot(whole).items()
        if ".new_" in name and float(value.abs().sum()) > 0 and ".1." in name
    }
    assert len(changed) == 8, "every workspace tensor of level 2 in both layers"
    resumed = run(4, "resumed", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(snapshot(resumed), snapshot(whole))
    loaded = peft.PeftModel.from_pretrained(build(), str(tmp_path / "whole" / "checkpoint-4"), is_trainable=True)
    assert torch.equal(logits(loaded), logits(whole.eval()))
    sleep = Consolidation.resume(loaded, updates=WakeUpdates(loaded))
    with teacher_view(loaded), teacher_view(whole):
        assert torch.equal(logits(loaded), logits(whole))
    sleep.commit()
    assert states_of(loaded)["default"].table.active(2) == (0,)


def whitespace_tokenizer() -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{index}": index for index in range(48)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", bos_token="w1", eos_token="w2")
