"""Fine-tuning on labelled tasks; a tiny model learns four words in a few steps."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from made_up_streams import stream

from sleep_pipeline.baselines import tuning
from sleep_pipeline.baselines.ewc import ewc
from sleep_pipeline.baselines.finetuning import Anchor, certain_lesson
from sleep_pipeline.baselines.joint import Joint
from sleep_pipeline.baselines.replay import replay
from sleep_pipeline.baselines.running import run_stream
from sleep_pipeline.baselines.sft import sft
from sleep_pipeline.baselines.tuning import labelled_lessons, steps_of
from sleep_pipeline.evaluation.tasks import Example
from sleep_pipeline.seeding.settings import SeedingSettings

SETTINGS = SeedingSettings.model_validate(
    {
        "rows": 8,
        "replay": {"stored_rows": 8, "stored_capacity": 6},
        "optimizer": {"steps": 60, "learning_rate": 3e-3, "precision": "fp32"},
    }
)


def test_a_lesson_teaches_the_label_and_nothing_before_it(tiny_model: Any, answering: Any) -> None:
    (lesson,) = labelled_lessons(answering, tiny_model, ["the river"], [Example("where is it", "the river")])
    decode = answering.tokenizer.decode
    assert decode(lesson.ids[: lesson.start]) == "<|user|> where is it -><|end|><|assistant|>"
    assert decode(lesson.ids[lesson.start :], skip_special_tokens=True).strip() == "the river"
    assert lesson.teacher.log_probs_NK.exp().tolist() == [[1.0]] * (len(lesson.ids) - lesson.start)


def test_a_long_example_is_learned_as_far_as_it_would_be_asked(tiny_model: Any, answering: Any) -> None:
    tiny_model.config.max_position_embeddings = 64
    labels = ["the river", "a lake"]
    long = Example("where is it " * 100, "a lake")
    short, cut = labelled_lessons(answering, tiny_model, labels, [Example("where is it", "a lake"), long])
    assert len(short.ids) < len(cut.ids) <= 64
    asked = answering.prompt(long.text, (), answering.room(tiny_model, labels))
    assert answering.tokenizer.decode(cut.ids[: cut.start]).count("where") == asked[-1]["content"].count("where") > 1


@pytest.mark.slow
def test_sft_learns_each_task_and_forgets_the_last_one(tiny_model: Any, answering: Any) -> None:
    result = run_stream(sft(tiny_model, answering, SETTINGS), stream())
    assert result.retention is not None
    means = result.retention.means()
    assert (means[0, 0], means[1, 1], means[1, 0]) == (1.0, 1.0, 0.0)


@pytest.mark.slow
def test_replay_keeps_the_first_task_with_a_bounded_store(tiny_model: Any, answering: Any) -> None:
    method = replay(tiny_model, answering, SETTINGS)
    result = run_stream(method, stream())
    assert result.retention is not None and result.retention.means()[1, 0] > 0
    parameters = sum(p.nbytes for p in tiny_model.parameters())
    assert result.stored[0] > parameters
    assert len(method._store.lessons("stored")) == 6


def test_later_tasks_take_more_steps_and_all_together_as_many() -> None:
    tasks = stream(tasks=4).tasks
    for growth, steps in ((0.0, [60] * 4), (0.5, [42, 54, 66, 78]), (1.0, [24, 48, 72, 96])):
        assert [steps_of(SETTINGS, growth, task).optimizer.steps for task in tasks] == steps
        assert sum(steps) == 4 * 60
    # How many tasks will come is not known.
    assert steps_of(SETTINGS, 1.0, replace(tasks[0], of=0)) is SETTINGS


def test_what_replays_takes_the_steps_of_each_task(
    tiny_model: Any, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(tuning, "learn", lambda *rest, **named: taken.append(rest[4].optimizer.steps))
    for method in (replay(tiny_model, answering, SETTINGS, growth=0.6), replay(tiny_model, answering, SETTINGS)):
        for task in stream().tasks:
            method.observe(task)
    assert taken == [48, 72, 60, 60]


@pytest.mark.slow
def test_joint_training_learns_all_when_it_is_asked(tiny_model: Any, answering: Any) -> None:
    method = Joint(tiny_model, answering, SETTINGS)
    result = run_stream(method, stream())
    assert result.accuracy().value == 1.0 and result.retention is None
    assert result.seconds[0] == 0.0 and result.tokens[1] > 0
    with pytest.raises(RuntimeError, match="task 1 comes too late"):
        method.observe(stream().tasks[0])


@pytest.mark.slow
def test_ewc_holds_on_to_the_first_task(tiny_model: Any, answering: Any) -> None:
    first, second = stream().tasks

    def moved(weight: float) -> float:
        """How far the second task drags the weights away from where the first one left them."""
        method = ewc(copy.deepcopy(tiny_model), answering, SETTINGS, weight=weight)
        method.observe(first)
        before = [p.detach().clone() for p in method.model.parameters()]
        method.observe(second)
        return sum(
            float((p.detach() - q).square().sum()) for p, q in zip(method.model.parameters(), before, strict=True)
        )

    assert moved(1e6) < 0.5 * moved(1e-6)


def test_every_night_s_importance_weighs_as_much_and_their_sum_stays_bounded(tiny_model: Any) -> None:
    anchor = Anchor(tiny_model.requires_grad_(True), weight=1.0, decay=0.5)
    size = sum(p.numel() for p in tiny_model.parameters())
    sums = []
    for night, scale in enumerate((1e-6, 1.0, 1e6, 1e-3)):
        anchor.information = lambda *_, scale=scale: [  # type: ignore[method-assign, misc]
            torch.full_like(p, scale) for p in tiny_model.parameters()
        ]
        anchor.remember([], 0, night)
        sums.append(sum(float(part.sum()) for part in anchor._fisher) / size)
    assert sums == pytest.approx([1.0, 1.5, 1.75, 1.875])


@pytest.mark.slow
def test_the_importance_is_that_of_the_model_s_own_answers(tiny_model: Any, answering: Any) -> None:
    anchor = Anchor(tiny_model.requires_grad_(True), weight=1.0)
    asked = tuple(answering.tokenizer("where is the river")["input_ids"])
    one, other = (certain_lesson((*asked, token), len(asked)) for token in (7, 11))
    for part, same in zip(anchor.information([one], 0, 3), anchor.information([other], 0, 3), strict=True):
        torch.testing.assert_close(part, same)
    # Over many draws it is the mean of the squared gradients under the model's belief.
    with torch.no_grad():
        belief = tiny_model(torch.tensor([asked])).logits[0, -1].softmax(-1)
    head = list(tiny_model.parameters())[-1]
    found = sum(anchor.information([one], 0, seed)[-1] for seed in range(200)) / 200
    exact = torch.zeros_like(head)
    log_probs = tiny_model(torch.tensor([asked])).logits[0, -1].log_softmax(-1)
    for token in belief.topk(len(belief)).indices:
        (gradient,) = torch.autograd.grad(log_probs[token], [head], retain_graph=True)
        exact += belief[token] * gradient.square()
    assert float(found.sum() / exact.sum()) == pytest.approx(1.0, abs=0.2)


def test_a_decay_that_is_no_share_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match=r"decay=1\.5 is no share"):
        Anchor(tiny_model.requires_grad_(True), weight=1.0, decay=1.5)


@pytest.mark.slow
def test_ewc_stores_the_weights_and_their_importance(tiny_model: Any, answering: Any) -> None:
    method = ewc(tiny_model, answering, SETTINGS, weight=1.0)
    method.observe(stream().tasks[0])
    assert method.stored == 2 * sum(p.nbytes for p in tiny_model.parameters())


def test_all_methods_of_one_settings_take_as_many_rows_a_step(
    tiny_model: Any, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, int, int]] = []

    def note(
        model: Any, tokenizer: Any, lessons: Any, store: Any, settings: SeedingSettings, *_: Any, **__: Any
    ) -> None:
        rehearsed = settings.replay.stored_rows if store.lessons("stored") else 0
        rows.append((settings.rows + rehearsed, settings.optimizer.steps, settings.replay.open_book_rows))

    monkeypatch.setattr("sleep_pipeline.baselines.tuning.learn", note)
    for make in (sft, replay):
        run_stream(make(tiny_model, answering, SETTINGS), stream())
    assert rows == [(16, 60, 0)] * 4
    run_stream(Joint(tiny_model, answering, SETTINGS), stream())
    assert rows[4:] == [(16, 120, 0)]


@pytest.mark.slow
def test_a_lora_leaves_the_base_as_it_was(tiny_model: Any, answering: Any) -> None:
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    method = sft(tiny_model, answering, SETTINGS, rank=2)
    method.observe(stream().tasks[0])
    with method.model.disable_adapter(), torch.no_grad():
        for name, parameter in method.model.get_base_model().named_parameters():
            if "lora_" not in name:
                assert torch.equal(parameter, before[name.replace(".base_layer", "")])
    assert method.stored == sum(p.nbytes for n, p in method.model.named_parameters() if "lora_" in n)
