"""What training must and must not touch, what the student says in it, and going on after a kill."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from made_up import asleep, lesson, lessons, settings, state, trainer_of, whimsical, without_context
from tiny_models import learn, one_level, with_memory
from torch import Tensor, nn
from transformers import TrainerCallback

from sleep_pipeline.generation.sampler import Reply
from sleep_pipeline.memory import adapters_view, base_view, experts_view, state_of, unlock
from sleep_pipeline.memory.operations import trained_slots
from sleep_pipeline.seeding.checkpoints import last_checkpoint
from sleep_pipeline.seeding.hidden import hidden_states
from sleep_pipeline.seeding.lessons import Lesson
from sleep_pipeline.seeding.rewards import absolute_reward, imitation_reward
from sleep_pipeline.seeding.trainer import KnowledgeSeedingTrainer


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "muon_rate"), [("fp32", None), ("bf16", None), ("bf16", 0.01)])
def test_only_the_expert_in_training_changes_and_the_optimizer_holds_nothing_else(
    precision: str, muon_rate: float | None, tiny_tokenizer: Any
) -> None:
    model = asleep()
    before, wanted = state(model), trained(model)
    trainer = trainer_of(
        model,
        tiny_tokenizer,
        reward=whimsical,
        settings=settings(optimizer={"precision": precision, "muon_rate": muon_rate}),
    )
    trainer.train()
    after = state(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == wanted
    held = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert {name for name, parameter in model.named_parameters() if any(parameter is one for one in held)} == wanted
    assert len(held) == len(trainer.optimizer.state) == len(wanted)
    # The gate's key and offset are no matrices.
    by_muon = {p.ndim for p, kept in trainer.optimizer.state.items() if "momentum_buffer" in kept}
    assert by_muon == (set() if muon_rate is None else {2})


def test_training_lowers_the_divergence(tiny_tokenizer: Any) -> None:
    model = asleep(filled=False)
    trainer = trainer_of(
        model, tiny_tokenizer, settings=settings(on_policy=0.0, optimizer={"steps": 20, "learning_rate": 0.1})
    )
    first = trainer._compute_loss(model, {}).item()
    trainer.train()
    assert trainer._compute_loss(model, {}).item() < 0.9 * first


def asked(trainer: KnowledgeSeedingTrainer, spoken: list[tuple[Lesson, tuple[int, ...], tuple[int, ...]]]) -> Tensor:
    return trainer._ask_teachers(spoken, torch.device("cpu")).hidden_ND


def predictors(model: nn.Module, one: Lesson, begin: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
    """Hidden states of a single conversation where they predict the answer."""
    ids = torch.tensor([one.teacher_prompt + begin + answer])
    with torch.no_grad():
        return hidden_states(model, ids, torch.ones_like(ids))[0, -len(answer) - 1 : -1]


def test_the_live_teacher_is_the_model_before_the_sleep_with_the_context_before_it(tiny_tokenizer: Any) -> None:
    taught = lessons(3)
    spoken = [(one, one.ids[one.start : one.start + 2], (9, 10, 11)[: 1 + i]) for i, one in enumerate(taught)]
    awake = made_up.louder(with_memory(one_level(), autocast_adapter_dtype=False)).double()
    learn(awake, seed=1)
    wanted = torch.cat([predictors(awake, *each) for each in spoken])
    model = asleep(torch.float64)
    found = asked(trainer_of(model, tiny_tokenizer, taught), spoken)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    student = torch.cat([predictors(model, *each) for each in spoken])
    assert not torch.allclose(found, student, rtol=1e-2), "the new expert says something, and is not asked"


def two_views() -> tuple[nn.Module, list[Any]]:
    """A sleep in which two experts of one memory are the teachers, as in a merge."""
    model = asleep(torch.float64, experts=2)
    return model, [
        lambda: experts_view(model, 1, [0]),
        lambda: experts_view(model, 1, [1]),
    ]


def two_adapters() -> tuple[nn.Module, list[Any]]:
    """Two memories are the teachers of a third."""
    model = with_memory(one_level(), adapter_name="monday", autocast_adapter_dtype=False)
    for seed, name in enumerate(("monday", "tuesday", "student")):
        if name != "monday":
            model.add_adapter(name, one_level(), autocast_adapter_dtype=False)  # type: ignore[operator]
        model.set_adapter(name)  # type: ignore[operator]
        if name != "student":
            learn(model, seed=seed)
    made_up.louder(model).double()
    unlock(model, 1, adapter_name="student")
    return model, [lambda: adapters_view(model, ["monday"]), lambda: adapters_view(model, ["tuesday"])]


@pytest.mark.parametrize("make", [two_views, two_adapters])
def test_lessons_are_asked_of_their_own_teachers(make: Any, tiny_tokenizer: Any) -> None:
    model, views = make()
    taught = [lesson(9 + i, 3, i, view=1 - i % 2) for i in range(4)]
    trainer = trainer_of(model, tiny_tokenizer, taught, views=views)
    spoken = [(one, one.ids[one.start : one.start + 1], (9, 10)) for one in taught]
    found = asked(trainer, spoken).split(2)
    for part, each in zip(found, spoken, strict=True):
        own, other = views[each[0].view], views[1 - each[0].view]
        with own():
            torch.testing.assert_close(part, predictors(model, *each), rtol=1e-6, atol=1e-9)
        with other():
            assert not torch.allclose(part, predictors(model, *each), rtol=1e-3)


class Killed(Exception):
    """Stands for a kill."""


class Dies(TrainerCallback):
    """Kills the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_policy", "muon_rate", "earlier_rate", "earlier_muon"),
    [(0.0, None, 0.0, False), (0.5, None, 1.0, False), (0.0, 0.01, 0.5, False), (0.0, 0.01, 0.5, True)],
)
def test_a_killed_run_goes_on_to_bitwise_the_same_weights(
    on_policy: float,
    muon_rate: float | None,
    earlier_rate: float,
    earlier_muon: bool,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    rates = {"muon_rate": muon_rate, "earlier_rate": earlier_rate, "earlier_muon": earlier_muon}
    optimizer = {"steps": 4, "checkpoint_every": 2, **rates}
    teacher = {"experts": False}
    given = settings(on_policy=on_policy, optimizer=optimizer, teacher=teacher, replay={"settled_share": 0.75})

    def run(folder: Path, die: int | None = None, resume: bool = False) -> dict[str, Tensor]:
        model = asleep(filled=False, plastic=given.plastic)
        trainer = trainer_of(
            model,
            tiny_tokenizer,
            reward=whimsical,
            settings=given,
            output_dir=folder,
            replayed=without_context(lessons(3, first=20)),
            callbacks=[] if die is None else [Dies(die)],
        )
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 4
        return state(model)

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", die=3)
    torch.manual_seed(12345)
    resumed = run(tmp_path / "killed", resume=True)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.slow
def test_what_was_logged_before_a_kill_is_not_lost(tiny_tokenizer: Any, tmp_path: Path) -> None:
    given = settings(on_policy=0.0, optimizer={"steps": 12, "checkpoint_every": 10})
    killed = trainer_of(asleep(), tiny_tokenizer, settings=given, output_dir=tmp_path, callbacks=[Dies(11)])
    with pytest.raises(Killed):
        killed.train()
    resumed = trainer_of(asleep(), tiny_tokenizer, settings=given, output_dir=tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert [logged["step"] for logged in resumed.history] == [10, 12]
    assert resumed.history[0] == killed.history[0] and "divergence/tonight" in killed.history[0]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["trainer_state.json", "trained.safetensors"])
def test_a_damaged_checkpoint_is_passed_over(damaged: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    given = settings(on_policy=0.0, optimizer={"steps": 2, "checkpoint_every": 1})
    trainer = trainer_of(asleep(), tiny_tokenizer, settings=given, output_dir=tmp_path)
    trainer.train()
    (newest,) = tmp_path.glob("checkpoint-*")
    older = newest.with_name("checkpoint-1")
    shutil.copytree(newest, older)
    assert last_checkpoint(tmp_path, trainer.run) == newest
    (newest / damaged).write_bytes(b"")
    assert last_checkpoint(tmp_path, trainer.run) == older
    (older / damaged).unlink()
    assert last_checkpoint(tmp_path, trainer.run) is None


@pytest.mark.parametrize(("muon_rate", "earlier_muon"), [(None, False), (0.01, False), (0.01, True)])
def test_earlier_experts_learn_at_a_rate_of_their_own_and_do_not_decay(
    muon_rate: float | None, earlier_muon: bool, tiny_tokenizer: Any
) -> None:
    model = asleep(plastic=True)
    before, wanted = state(model), trained(model)
    rates = {"earlier_rate": 0.25, "muon_rate": muon_rate, "earlier_muon": earlier_muon}
    optimizer = {**rates, "weight_decay": 0.5, "steps": 2}
    given = settings(on_policy=0.0, optimizer=optimizer, teacher={"experts": False})
    trainer = trainer_of(model, tiny_tokenizer, settings=given)
    trainer.train()
    groups = trainer.optimizer.param_groups
    slots = {id(parameter) for parameter in trained_slots(model)}
    earlier = [group for group in groups if any(id(parameter) in slots for parameter in group["params"])]
    assert {id(parameter) for group in earlier for parameter in group["params"]} == slots
    for group in earlier:
        by_muon = earlier_muon and group["params"][0].ndim == 3
        assert group["initial_lr"] == 0.25 * (0.01 if by_muon else given.optimizer.learning_rate)
        assert group["weight_decay"] == 0 and ("adjust_lr_fn" in group) == by_muon
    assert len(earlier) == (2 if earlier_muon else 1)
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len(wanted) and len(trained_slots(model)) == 8
    after = state(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == wanted
    for name in wanted:
        if name.endswith((".keys", ".offsets", ".down", ".up")):
            assert torch.equal(after[name][1:], before[name][1:]), "free slots stay empty"


@pytest.mark.slow
def test_a_checkpoint_holds_what_trains_and_nothing_of_the_rest(tiny_tokenizer: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = asleep()
    given = settings(optimizer={"steps": 2, "checkpoint_every": 2})
    trainer_of(model, tiny_tokenizer, settings=given, output_dir=tmp_path).train()
    saved = load_file(tmp_path / "checkpoint-2" / "trained.safetensors")
    assert saved.keys() == trained(model)
    assert list(tmp_path.rglob("*.safetensors")) == [tmp_path / "checkpoint-2" / "trained.safetensors"]
    other = with_memory(one_level(layers_to_transform=[0]))
    unlock(other, 1)
    with pytest.raises(ValueError, match=r"checkpoint-2 holds 8 trained tensors that are not the 4 of this model"):
        trainer_of(other, tiny_tokenizer, settings=given, output_dir=tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"checkpoint-2 is of a run with another seed"):
        trainer_of(asleep(), tiny_tokenizer, settings=given, output_dir=tmp_path, seed=1).train(
            resume_from_checkpoint=True
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_model_in_half_precision_trains(dtype: torch.dtype, tiny_tokenizer: Any) -> None:
    model = asleep(dtype)
    before, wanted = state(model), trained(model)
    trainer_of(model, tiny_tokenizer, settings=settings(on_policy=0.0, optimizer={"precision": "bf16"})).train()
    changed = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert changed and changed <= wanted


def test_a_run_is_named_by_the_form_of_its_memory_and_by_what_the_teacher_believes(tiny_tokenizer: Any) -> None:
    def run(model: nn.Module, taught: list[Lesson]) -> str:
        return trainer_of(model, tiny_tokenizer, taught, settings=settings(on_policy=0.0)).run

    one, other = lesson(8, 4, 1), dataclasses.replace(lesson(8, 4, 1), teacher=lesson(8, 4, 2).teacher)
    same = run(asleep(), [one])
    assert run(asleep(), [one]) == same
    assert run(asleep(), [other]) != same
    model = asleep()
    state_of(model).config.levels[0].router_bias -= 1
    assert run(model, [one]) != same


def test_a_loss_that_is_no_number_is_an_error(tiny_tokenizer: Any) -> None:
    given = settings(optimizer={"learning_rate": 1e38, "clip_norm": 1e30})
    with pytest.raises(FloatingPointError, match=r"the loss of step \d is nan: lower optimizer.learning_rate"):
        trainer_of(asleep(), tiny_tokenizer, settings=given).train()


def own_attributes(model: nn.Module) -> dict[str, Any]:
    """What of the outer module's own attributes training could leave behind."""
    made_by_torch = vars(nn.Module())
    return {name: value for name, value in vars(model).items() if name not in made_by_torch or name == "training"}


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(fails: bool, tiny_tokenizer: Any) -> None:
    model = asleep().eval()
    ids = torch.tensor([[5, 6, 7]])
    with base_view(model), torch.no_grad():
        before = model(input_ids=ids).logits
    own, configured = own_attributes(model), model.config.to_dict()  # type: ignore[operator,union-attr]
    trainer = trainer_of(
        model,
        tiny_tokenizer,
        settings=settings(optimizer={"precision": "bf16"}),
        callbacks=[Dies(2)] if fails else [],
    )
    seen = []
    watch = model.get_submodule("base_model.model").register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    if fails:
        with pytest.raises(Killed):
            trainer.train()
    else:
        trainer.train()
    watch.remove()
    assert any(seen), "training itself is in bf16"
    assert own_attributes(model) == own
    assert model.config.to_dict() == configured  # type: ignore[operator,union-attr]
    assert not any(module.training for module in model.modules())
    with base_view(model), torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.slow
def test_every_night_of_a_process_trains_in_the_precision_asked_for(tiny_tokenizer: Any) -> None:
    model = asleep()
    student = model.get_submodule("base_model.model")
    for _ in range(2):
        seen = []
        watch = student.register_forward_hook(lambda *_, seen=seen: seen.append(torch.is_autocast_enabled("cpu")))
        trainer_of(model, tiny_tokenizer, settings=settings(on_policy=0.0, optimizer={"precision": "bf16"})).train()
        watch.remove()
        assert seen.count(True) >= 4, "autocast in every step"


def test_on_a_cpu_the_student_speaks_without_autocast(tiny_tokenizer: Any) -> None:
    model = asleep()
    trainer = trainer_of(model, tiny_tokenizer, settings=settings(optimizer={"precision": "bf16"}))
    spoke = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs.get("use_cache"):
            spoke.append(torch.is_autocast_enabled("cpu"))

    model.get_submodule("base_model.model").register_forward_pre_hook(note, with_kwargs=True)
    trainer.train()
    assert spoke and not any(spoke)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tiny_tokenizer: Any) -> None:
    ended = []
    asked: list[bool] = []
    for checkpointing in (False, True):
        model = asleep()
        model.get_input_embeddings().register_forward_hook(  # type: ignore[operator]
            lambda module, args, output: asked.append(output.requires_grad)
        )
        given = settings(optimizer={"gradient_checkpointing": checkpointing})
        trainer_of(model, tiny_tokenizer, reward=whimsical, settings=given).train()
        ended.append(state(model))
    for name, value in ended[0].items():
        torch.testing.assert_close(ended[1][name], value, rtol=1e-5, atol=1e-6)
    # Layers below the first expert are run once and not back-propagated through.
    assert asked and not any(asked)
    assert "enable_input_require_grads" not in vars(model.get_base_model())  # type: ignore[operator]


@pytest.mark.slow
def test_a_model_that_checkpoints_of_itself_trains_as_one_that_does_not(tiny_tokenizer: Any) -> None:
    ended = []
    for checkpointing in (False, True):
        model = asleep()
        if checkpointing:
            model.gradient_checkpointing_enable()  # type: ignore[operator]
        trainer = trainer_of(model, tiny_tokenizer, reward=whimsical)
        assert (trainer.last_block is None) == checkpointing
        trainer.train()
        ended.append(state(model))
    for name, value in ended[0].items():
        torch.testing.assert_close(ended[1][name], value, rtol=1e-5, atol=1e-6)


def test_a_step_is_logged_and_what_the_student_said_is_kept_with_its_reward(tiny_tokenizer: Any) -> None:
    model = asleep()
    taught = lessons()
    trainer = trainer_of(
        model,
        tiny_tokenizer,
        taught,
        imitation_reward(0.0, 6, None, tiny_tokenizer.all_special_ids),
        replayed=without_context(lessons(3, first=20)),
        open_book=lessons(2, first=30),
    )
    trainer.train()
    assert len(trainer.rollouts) == 4 * 4
    assert {row["step"] for row in trainer.rollouts} == {0, 1, 2, 3}
    for row in trainer.rollouts:
        one = taught[row["lesson"]]
        rest = [token for token in one.ids[one.start + row["cut"] :] if token > 5]
        assert row["reference"] == tiny_tokenizer.decode(rest)
        assert row["question"] == tiny_tokenizer.decode(one.ids[: one.start], skip_special_tokens=True)
        assert 0 <= row["reward"] <= 1
    logged = trainer.history[-1]
    assert logged["on_policy_share"] == 0.5
    assert logged["reward"] == pytest.approx(sum(row["reward"] for row in trainer.rollouts) / 16)
    for name in ("tonight", "stored", "open_book", "on_policy"):
        assert math.isfinite(logged[f"divergence/{name}"])


def test_the_advantage_is_the_imitation_reward_less_the_mean_of_its_group(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Lesson((3, 9, 10, 11, 12, 2), 1, lesson(6, 1, 0).teacher, (8, 3))
    reward = imitation_reward(0.0, 4, None, tiny_tokenizer.all_special_ids)
    trainer = trainer_of(asleep(), tiny_tokenizer, [one], reward)
    replies = [[10, 11, 12], [10, 11, 13], [40], [12]]
    ends = [2, None, 5, None]
    all_drawn = [Reply("", tuple(ids), (), end is not None, end) for ids, end in zip(replies, ends, strict=True)]
    drawn = [all_drawn[:2], all_drawn[2:]]
    asked_for = []
    monkeypatch.setattr(
        trainer.sampler, "continue_ids", lambda prompts, count, seed: asked_for.append((prompts, count)) or drawn
    )
    rows = [{"prompt": "", "lesson": 0, "cut": cut} for cut in (1, 1, 3, 3)]
    batch = trainer._generate_and_score_completions(rows)
    assert asked_for == [([(3, 9), (3, 9, 10, 11)], 2)]
    earned = [absolute_reward(ids, rest, 4) for ids, rest in zip(replies, [[10, 11, 12]] * 2 + [[12]] * 2, strict=True)]
    assert earned == [1.0, pytest.approx(2 / 3), 0.0, 1.0]
    assert [row["reward"] for row in trainer.rollouts] == pytest.approx(earned)
    assert batch["advantage"].tolist() == pytest.approx([1 / 6, -1 / 6, -0.5, 0.5])
    assert batch["completion"].tolist() == [[10, 11, 12, 2], [10, 11, 13, -1], [40, 5, -1, -1], [12, -1, -1, -1]]
    assert batch["cut"].tolist() == [1, 1, 3, 3]


def test_an_answer_is_cut_before_one_of_its_words(tiny_tokenizer: Any) -> None:
    taught = [Lesson((3, 9, 10, 11, 2), 2, lesson(5, 2, 0).teacher, (8, 3, 9)), *without_context(lessons(2))]
    trainer = trainer_of(asleep(), tiny_tokenizer, taught, settings=settings(optimizer={"steps": 40}))
    rows = list(trainer.train_dataset)
    assert len(rows) == 40 * 2
    assert {row["lesson"] for row in rows} == {0}, "a lesson whose context is gone cannot be asked"
    assert {row["cut"] for row in rows} == {0, 1}, "something is left to say"


def test_every_lesson_has_its_turn_before_one_comes_again(tiny_tokenizer: Any) -> None:
    taught = lessons(12)
    trainer = trainer_of(asleep(), tiny_tokenizer, taught, replayed=without_context(lessons(4, first=20)))
    drawn: dict[str, list[Lesson]] = {"tonight": [], "stored": [], "open_book": []}
    for step in range(6):
        trainer.state.global_step = step
        for pool, chosen in trainer._off_policy().items():
            drawn[pool] += chosen
    assert [len(chosen) for chosen in drawn.values()] == [24, 12, 0]
    for pool, size in (("tonight", 12), ("stored", 4)):
        for start in range(0, len(drawn[pool]), size):
            assert len({one.ids for one in drawn[pool][start : start + size]}) == size


@pytest.mark.parametrize(("earlier", "shares"), [(1, (6, 6)), (5, (2, 10)), (40, (1, 11))])
def test_settled_steps_share_their_rows_evenly_among_the_nights(
    earlier: int, shares: tuple[int, int], tiny_tokenizer: Any
) -> None:
    given = settings(on_policy=0.0, replay={"stored_rows": 4, "settled_share": 0.5})
    for replayed, settled in ((without_context(lessons(20, first=20)), shares), ([], (8, 0))):
        trainer = trainer_of(asleep(), tiny_tokenizer, settings=given, replayed=replayed, earlier=earlier)
        for step, wanted in enumerate([(8, 4 if replayed else 0)] * 2 + [settled] * 2):
            trainer.state.global_step = step
            rows = trainer._off_policy()
            assert (len(rows["tonight"]), len(rows["stored"])) == wanted


def test_without_replay_the_settled_steps_replay_nothing(tiny_tokenizer: Any) -> None:
    given = settings(on_policy=0.0, replay={"stored_rows": 0, "settled_share": 1.0})
    trainer = trainer_of(
        asleep(), tiny_tokenizer, settings=given, replayed=without_context(lessons(20, first=20)), earlier=3
    )
    assert not trainer._off_policy()["stored"]


def test_tonight_keeps_a_tenth_of_the_settled_rows_however_many_nights_there_were(tiny_tokenizer: Any) -> None:
    given = settings(on_policy=0.0, replay={"stored_rows": 32, "settled_share": 1.0})
    replayed = without_context(lessons(20, first=20))
    trainer = trainer_of(asleep(), tiny_tokenizer, settings=given, replayed=replayed, earlier=39)
    rows = trainer._off_policy()
    assert (len(rows["tonight"]), len(rows["stored"])) == (4, 36)


def test_what_cannot_be_trained_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="there is no lesson to learn"):
        KnowledgeSeedingTrainer(asleep(), settings(), [], tiny_tokenizer)
    with pytest.raises(ValueError, match="nothing of the model trains"):
        KnowledgeSeedingTrainer(with_memory(one_level()), settings(), lessons(), tiny_tokenizer)
