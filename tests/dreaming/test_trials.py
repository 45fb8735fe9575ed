"""Stacked trials against the obvious reference: one copy of the model at a time, peft, a plain loop, in float64."""

import copy
from collections.abc import Sequence
from typing import Any

import peft
import pytest
import tiny_models
import torch
from torch import Tensor, nn

from sleep_pipeline.dreaming.rows import Dream, Row, exact_match, side_by_side
from sleep_pipeline.dreaming.settings import TrialSettings
from sleep_pipeline.dreaming.stacked_lora import StackedLora, adapters_on, lay_out, stack
from sleep_pipeline.dreaming.trials import Trial, _groups, measure_footprint, run_trials
from sleep_pipeline.memory import add_beside

SETTINGS = TrialSettings(rank=3, alpha=6.0, lr=0.01, weight_decay=0.1, clip_norm=0.5, steps=20)
"""A norm of 0.5 clips some steps and leaves others."""


def build(architecture: str = "llama") -> nn.Module:
    return tiny_models.build(architecture, torch.float64)


def row(length: int, seed: int, start: int = 0) -> Row:
    return Row(tuple(tiny_models.tokens(1, length, seed)[0].tolist()), start)


DREAMS = [
    Dream((row(9, 1),), seed=1),
    Dream((row(30, 2, 11),), seed=2, steps=7),
    Dream((row(14, 3, 5), row(6, 4)), seed=3),
    Dream((row(4, 5, 2),), seed=1, steps=13),
    Dream((row(23, 6),), seed=5, steps=1),
    Dream((row(17, 7, 16),), seed=6, steps=13),
]


def serial(model: nn.Module, dream: Dream, settings: TrialSettings) -> tuple[dict[str, Tensor], list[float]]:
    """Train one copy with peft; rows are read one by one, so nothing is padded."""
    layout = lay_out(model, settings.rank, settings.alpha, settings.targets)
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=list(layout.shapes)
    )
    copied = peft.get_peft_model(copy.deepcopy(model), config).eval()
    start = layout.views(layout.initial(dream.seed)[None]).layers
    factors: dict[str, Tensor] = {}
    for name, module in copied.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            with torch.no_grad():
                down.copy_(start[name].down[0])
            factors |= {f"{name}.down": down, f"{name}.up": up}
    parameters = [parameter for parameter in copied.parameters() if parameter.requires_grad]
    assert len(parameters) == len(factors)
    optimizer = torch.optim.AdamW(
        parameters, settings.lr, settings.betas, settings.eps, weight_decay=settings.weight_decay
    )
    history = []
    for _ in range(dream.steps or settings.steps):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for text in dream.rows:
            logits = copied(input_ids=torch.tensor([text.ids])).logits[0].log_softmax(-1)
            for at in range(max(1, text.start), len(text.ids)):
                total, count = total - logits[at - 1, text.ids[at]], count + 1
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        history.append(loss.item())
    return {name: tensor.detach() for name, tensor in factors.items()}, history


def named(adapter: StackedLora) -> dict[str, Tensor]:
    assert len(adapter) == 1
    pairs = adapter.layers.items()
    return {f"{name}.down": f.down[0] for name, f in pairs} | {f"{name}.up": f.up[0] for name, f in pairs}


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Largest relative difference of a factor, in norm."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / right[name].norm()) for name in left)


def state(model: nn.Module) -> list[Any]:
    """All of a model that a trial could leave a trace in."""
    return [
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: parameter.grad for name, parameter in model.named_parameters()},
        {name: (module.training, type(module), set(vars(module))) for name, module in model.named_modules()},
        {name: len(module._forward_hooks) for name, module in model.named_modules()},
    ]


def assert_same_state(before: list[Any], after: list[Any]) -> None:
    assert tiny_models.same(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize(
    "architecture",
    ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "qwen3", "gpt_neox"))],
)
@pytest.mark.parametrize(
    "trials_at_once", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(None, marks=pytest.mark.slow)]
)
def test_every_trial_equals_a_copy_trained_alone(architecture: str, trials_at_once: int | None) -> None:
    model = build(architecture)
    settings = SETTINGS.model_copy(update={"trials_at_once": trials_at_once, "max_padding": 1.0})
    report = run_trials(model, DREAMS, settings)
    assert [trial.index for trial in report.trials] == list(range(len(DREAMS)))
    for trial, dream in zip(report.trials, DREAMS, strict=True):
        factors, history = serial(model, dream, settings)
        assert difference(named(trial.adapter), factors) < 1e-9
        assert list(trial.losses) == pytest.approx(history, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_each_trial_is_clipped_by_its_own_norm_or_not_at_all(clip_norm: float | None) -> None:
    model, settings = build(), SETTINGS.model_copy(update={"clip_norm": clip_norm, "max_padding": 1.0})
    for trial, dream in zip(run_trials(model, DREAMS, settings).trials, DREAMS, strict=True):
        assert difference(named(trial.adapter), serial(model, dream, settings)[0]) < 1e-9


def test_a_trial_does_not_change_when_the_others_are_permuted_or_replaced() -> None:
    model, settings = build(), SETTINGS.model_copy(update={"max_padding": 1.0})
    expected = [named(trial.adapter) for trial in run_trials(model, DREAMS, settings).trials]
    order = [4, 2, 5, 0, 3, 1]
    permuted = run_trials(model, [DREAMS[index] for index in order], settings).trials
    for trial, index in zip(permuted, order, strict=True):
        assert difference(named(trial.adapter), expected[index]) < 1e-9
    others = [Dream((row(40, 60 + index),), seed=index, steps=3 + index) for index in range(5)]
    replaced = run_trials(model, [*others[:3], DREAMS[2], *others[3:]], settings).trials
    assert difference(named(replaced[3].adapter), expected[2]) < 1e-9


@pytest.mark.slow
def test_the_first_weights_depend_on_the_seed_alone() -> None:
    model, settings = build(), SETTINGS.model_copy(update={"lr": 1e-30, "weight_decay": 0.0})
    few = run_trials(model, DREAMS[:1], settings).trials
    many = run_trials(model, DREAMS, settings).trials
    first, same_seed, other_seed = (named(trial.adapter) for trial in (many[0], many[3], many[1]))
    for name in first:
        if name.endswith(".up"):
            assert first[name].abs().max() < 1e-20
        else:
            assert torch.equal(first[name], named(few[0].adapter)[name])
            assert torch.equal(first[name], same_seed[name])
            assert not torch.equal(first[name], other_seed[name])


def test_the_model_is_bit_for_bit_what_it_was() -> None:
    model = build("llama").train()
    model.get_submodule("model.layers.0").eval()
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    generator = torch.get_rng_state()
    run_trials(model, DREAMS, SETTINGS, lambda model, trials: [0.0] * len(trials))
    assert_same_state(before, state(model))
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_model_is_what_it_was_after_an_exception() -> None:
    model = build("llama").train()
    before = state(model)

    def fail(model: nn.Module, trials: Sequence[int]) -> list[float]:
        raise RuntimeError("the judge is asleep")

    with pytest.raises(RuntimeError, match="the judge is asleep"):
        run_trials(model, DREAMS, SETTINGS, fail)
    assert_same_state(before, state(model))
    with pytest.raises(KeyError):
        with adapters_on(model, run_trials(model, DREAMS[:1], SETTINGS).trials[0].adapter):
            raise KeyError
    assert_same_state(before, state(model))


def test_dreams_that_cannot_be_tried_are_dropped_with_a_reason_and_counted() -> None:
    dreams = [
        Dream(()),
        DREAMS[0],
        Dream((row(5, 1), Row(()))),
        Dream((row(65, 2),)),
        Dream((row(1, 3),)),
        Dream((row(8, 4, 8),)),
        Dream((Row((3, tiny_models.VOCAB)),)),
        Dream((row(8, 5),), steps=0),
        Dream((row(64, 6),), steps=1),
    ]
    report = run_trials(build(), dreams, SETTINGS)
    assert [trial.index for trial in report.trials] == [1, 8]
    assert [dropped.index for dropped in report.dropped] == [0, 2, 3, 4, 5, 6, 7]
    assert report.dropped_by_reason == {
        "empty": 2,
        "longer than the window": 1,
        "nothing to learn behind the start of the answer": 2,
        "tokens outside the vocabulary": 1,
        "no steps": 1,
    }
    assert difference(named(report.trials[0].adapter), serial(build(), DREAMS[0], SETTINGS)[0]) < 1e-9


@pytest.mark.parametrize("dreams", [[], [Dream(())]])
def test_a_night_without_a_dream_to_try_reports_no_trials(dreams: list[Dream]) -> None:
    report = run_trials(build(), dreams, SETTINGS)
    assert report.trials == () and len(report.dropped) == len(dreams)


def test_all_trials_of_a_stack_are_judged_at_once_each_by_its_own_rows() -> None:
    model, settings = build(), SETTINGS.model_copy(update={"max_padding": 1.0})
    asked: list[tuple[int, ...]] = []

    def judge(model: nn.Module, trials: Sequence[int]) -> list[Tensor]:
        asked.append(tuple(trials))
        ids = torch.cat([tiny_models.tokens(2, 8, 100 + trial) for trial in trials])
        return list(model(input_ids=ids).logits.unflatten(0, (len(trials), 2)))

    report = run_trials(model, DREAMS, settings, judge)
    assert len(asked) == 1 and sorted(asked[0]) == list(range(len(DREAMS)))
    for trial in report.trials:
        with torch.no_grad(), adapters_on(model, trial.adapter):
            alone = model(input_ids=tiny_models.tokens(2, 8, 100 + trial.index)).logits
        torch.testing.assert_close(trial.outcome, alone, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(alone, model(input_ids=tiny_models.tokens(2, 8, 100 + trial.index)).logits)


@pytest.mark.slow
def test_adapters_that_nobody_wants_are_not_kept() -> None:
    def judge(model: nn.Module, trials: Sequence[int]) -> list[int]:
        return list(trials)

    kept, dropped = (run_trials(build(), DREAMS, SETTINGS, judge, keep=keep).trials for keep in (True, False))
    assert [trial.outcome for trial in dropped] == [trial.outcome for trial in kept]
    assert [trial.losses for trial in dropped] == [trial.losses for trial in kept]
    numbers = [sum(factors.down.numel() for factors in trial.adapter.layers.values()) for trial in (*kept, *dropped)]
    assert all(numbers[: len(kept)]) and not any(numbers[len(kept) :])


def test_a_judge_must_return_one_outcome_a_trial() -> None:
    with pytest.raises(ValueError, match="returned 1 outcomes for 2 trials"):
        run_trials(build(), [DREAMS[0], DREAMS[0]], SETTINGS, lambda model, trials: [1.0])


@pytest.mark.slow
def test_reading_the_answers_finds_what_greedy_decoding_would_say() -> None:
    model = build()
    with torch.no_grad():
        # A head drawn so small could not be sure of anything.
        model.get_submodule("lm_head").weight.mul_(50)  # type: ignore[operator, union-attr]
    settings = SETTINGS.model_copy(update={"lr": 0.02, "steps": 60, "clip_norm": 1.0, "weight_decay": 0.0})
    taught = [row(10, seed, 6) for seed in range(3)]
    report = run_trials(model, [Dream((text,)) for text in taught], settings)
    questions = [[taught[0], taught[1]], [taught[1]], [taught[0], taught[1], taught[2]]]
    adapters = stack([trial.adapter for trial in report.trials])
    with adapters_on(model, adapters):
        scores = exact_match(model, questions)
    for score, trial, asked in zip(scores, report.trials, questions, strict=True):
        right = 0
        for question in asked:
            ids = torch.tensor([question.ids[: question.start]])
            with adapters_on(model, trial.adapter):
                said = model.generate(ids, do_sample=False, max_new_tokens=4, min_new_tokens=4)  # type: ignore[operator]
            right += tuple(said[0].tolist()) == question.ids
        assert score == right / len(asked)
    assert scores[1] == 1.0 and scores[0] == 0.5


def test_an_answer_to_judge_must_exist() -> None:
    with pytest.raises(ValueError, match="trial 1 has no questions"):
        exact_match(build(), [[row(5, 0)], []])


def test_padding_of_any_length_leaves_a_trial_as_it_is() -> None:
    model = build()
    alone = run_trials(model, [DREAMS[0]], SETTINGS).trials[0]
    settings = SETTINGS.model_copy(update={"max_padding": 1.0})
    padded = run_trials(model, [DREAMS[0], Dream((row(64, 9), row(3, 10), row(50, 11)), steps=20)], settings).trials[0]
    assert difference(named(padded.adapter), named(alone.adapter)) < 1e-9


def test_a_trial_that_diverges_leaves_the_others_alone() -> None:
    model, settings = build(), SETTINGS.model_copy(update={"max_padding": 1.0})
    with torch.no_grad():
        model.get_input_embeddings().weight[47] = torch.nan  # type: ignore[operator, union-attr]
    bad = Dream((Row((3, 47, 5, 6)),), seed=9)
    clean = [Dream((Row(tuple(min(t, 46) for t in d.rows[0].ids)),), d.seed, d.steps) for d in DREAMS]
    alone, beside = run_trials(model, clean, settings), run_trials(model, [bad, *clean], settings)
    assert all(loss != loss for loss in beside.trials[0].losses)
    for a, b in zip(alone.trials, beside.trials[1:], strict=True):
        assert difference(named(b.adapter), named(a.adapter)) < 1e-9


def sizes(report_of: list[Dream], settings: TrialSettings, model: nn.Module) -> list[int]:
    """Return how many trials ran at once."""
    found: list[int] = []

    def judge(model: nn.Module, trials: Sequence[int]) -> Sequence[int]:
        found.append(len(trials))
        return trials

    run_trials(model, report_of, settings, judge)
    return found


def test_a_memory_budget_decides_how_many_run_at_once() -> None:
    model, dreams = build(), [Dream((row(20, seed),), seed, steps=1) for seed in range(12)]
    layout = lay_out(model, SETTINGS.rank, SETTINGS.alpha)
    footprint = measure_footprint(model, layout, dreams[0], SETTINGS)
    for count in (1, 3, 5, 12):
        settings = SETTINGS.model_copy(update={"memory_budget": int(footprint.of(count, 20 * count)) + 1})
        assert max(sizes(dreams, settings, model)) == count
    # One trial runs whatever the budget.
    assert sizes(dreams[:2], SETTINGS.model_copy(update={"memory_budget": 1}), model) == [1, 1]


def test_a_stack_that_does_not_fit_onto_the_gpu_names_the_settings_that_take_less() -> None:
    def judge(model: nn.Module, trials: Sequence[int]) -> Sequence[int]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model = build()
    before, told = state(model), r"2 dreams at once .*lower dreaming\.trials\.memory_budget=2147483648 .*2\.00 GiB\)"
    with pytest.raises(torch.OutOfMemoryError, match=told):
        run_trials(model, [Dream((row(8, seed),), seed, steps=1) for seed in range(2)], SETTINGS, judge)
    assert_same_state(before, state(model))


def test_what_a_backward_pass_keeps_grows_with_the_positions_as_measured() -> None:
    model, settings = build(), SETTINGS
    layout = lay_out(model, settings.rank, settings.alpha)
    short, long = (measure_footprint(model, layout, Dream((row(length, 0),)), settings) for length in (16, 48))
    assert short.trial == long.trial == 6 * layout.size * 8
    assert short.position == pytest.approx(long.position, rel=0.2)
    # At the very least the input of every adapted layer is kept.
    assert short.position > 8 * sum(d_in for d_in, _ in layout.shapes.values()) / 2


def test_short_dreams_do_not_wait_for_long_ones_when_padding_is_dear() -> None:
    model = build()
    dreams = [Dream((row(length, length),), steps=1) for length in (60, 4, 58, 5)]
    assert sizes(dreams, SETTINGS.model_copy(update={"max_padding": 0.2}), model) == [2, 2]
    assert sizes(dreams, SETTINGS.model_copy(update={"max_padding": 1.0}), model) == [4]
    assert sizes(dreams, SETTINGS.model_copy(update={"max_padding": 1.0, "trials_at_once": 3}), model) == [3, 1]
    assert sizes(dreams, SETTINGS, model) == [2, 2]
    # Elsewhere a pass is dearer than padding.
    settings = SETTINGS.model_copy(update={"trials_at_once": 4})
    assert len(_groups(model, lay_out(model, 2, 4.0), dreams, range(4), settings)) == 2
    assert len(_groups(model.to("meta"), lay_out(model, 2, 4.0), dreams, range(4), settings)) == 1


def test_targets_limit_the_layers_and_the_head_gets_no_adapter() -> None:
    model = build()
    assert set(lay_out(model, 2, 4.0, ["q_proj", "mlp.up_proj"]).shapes) == {
        f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    whole = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(lay_out(model, 2, 4.0).shapes) == whole - {"lm_head"}


def test_an_adapter_of_peft_gets_no_adapter_and_hides_no_layer() -> None:
    model = tiny_models.with_memory()
    before = [lay_out(model, 2, 4.0, targets).size for targets in (None, ["q_proj"])]
    add_beside(model, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]), "dreamer")
    assert [lay_out(model, 2, 4.0, targets).size for targets in (None, ["q_proj"])] == before


def test_a_target_that_fits_no_layer_is_named() -> None:
    settings = SETTINGS.model_copy(update={"targets": ("lm_head",)})
    with pytest.raises(ValueError, match=r"target 'lm_head' fits no linear layer of LlamaForCausalLM; .* q_proj"):
        run_trials(build(), DREAMS, settings)


def test_rows_that_cannot_be_shared_out_are_refused() -> None:
    model = build()
    trials = run_trials(model, DREAMS[:2], SETTINGS).trials
    with adapters_on(model, stack([trial.adapter for trial in trials])):
        with pytest.raises(ValueError, match="rows of 2 adapters; give a multiple of 2 rows"):
            model(input_ids=tiny_models.tokens(3, 5))


def test_adapters_of_another_model_are_refused() -> None:
    adapter = run_trials(build("gpt2"), DREAMS[:1], SETTINGS).trials[0].adapter
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no module 'transformer\.h\.0"):
        with adapters_on(build(), adapter):
            pass


def test_adapters_of_unlike_ranks_are_not_stacked() -> None:
    trials: list[Trial] = [
        run_trials(build(), DREAMS[:1], SETTINGS.model_copy(update={"rank": rank})).trials[0] for rank in (2, 3)
    ]
    with pytest.raises(ValueError, match="must have the same layers, ranks and scale"):
        stack([trial.adapter for trial in trials])
    with pytest.raises(ValueError, match="no adapter to stack"):
        stack([])


@pytest.mark.parametrize(("dtype", "precision"), [(torch.bfloat16, "model"), (torch.float32, "bf16")])
def test_in_bf16_the_adapters_stay_in_float32_and_learn(dtype: torch.dtype, precision: str) -> None:
    settings = SETTINGS.model_copy(update={"precision": precision, "clip_norm": None, "weight_decay": 0.0})
    report = run_trials(tiny_models.build("llama", dtype), DREAMS[:3], settings, lambda model, trials: trials)
    for trial in report.trials:
        assert {tensor.dtype for tensor in named(trial.adapter).values()} == {torch.float32}
        assert trial.losses[-1] < trial.losses[0]


@pytest.mark.slow
def test_a_model_with_routed_experts_gets_adapters_where_whole_rows_pass() -> None:
    model = build("qwen3_moe")
    # The grouped product of experts does not know float64.
    model.set_experts_implementation("eager")  # type: ignore[operator]
    settings = SETTINGS.model_copy(update={"targets": ("q_proj", "o_proj"), "max_padding": 1.0})
    for trial, dream in zip(run_trials(model, DREAMS, settings).trials, DREAMS, strict=True):
        assert difference(named(trial.adapter), serial(model, dream, settings)[0]) < 1e-9


def test_a_batch_keeps_the_rows_of_a_trial_together_and_marks_what_is_learned() -> None:
    batch = side_by_side([[Row((5, 6, 7), 2)], [Row((8, 9)), Row((4, 4, 4, 4), 3)]])
    assert batch.ids_NT.tolist() == [[5, 6, 7, 0], [0, 0, 0, 0], [8, 9, 0, 0], [4, 4, 4, 4]]
    assert batch.first == 1
    none = -100
    assert batch.labels_NS.tolist() == [[none, 7, none], [none] * 3, [9, none, none], [none, none, 4]]
    assert batch.counts_K.tolist() == [1, 2]
    with pytest.raises(ValueError, match="no row has a token to predict"):
        side_by_side([[Row((5,))]])


@pytest.mark.parametrize(
    ("values", "words"),
    [({"betas": (0.9, 1.0)}, "betas="), ({"targets": ()}, "targets="), ({"max_padding": 2}, "less than or equal to 1")],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrialSettings(**values)
