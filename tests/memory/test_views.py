"""Teacher and student are one network: which parts take part must be right in every circumstance."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from tiny_models import build, fill, learn, live_a_day, logits, one_level, snapshot, three_levels, tokens, with_memory
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sleep_pipeline.memory import (
    Consolidation,
    SlotError,
    WakeUpdates,
    activate,
    adapters_view,
    base_view,
    checkpoint_context,
    experts_view,
    reset,
    student_view,
    teacher_view,
    trace_routing,
    unlock,
)


def asleep() -> tuple[nn.Module, Tensor, Consolidation]:
    """Return a model in a sleep of level 1 into level 2, the logits before it, and the sleep."""
    model = with_memory(three_levels())
    learn(model, 1, seed=1)
    learn(model, 3, seed=2)
    updates = WakeUpdates(model)
    live_a_day(model, updates)
    before = logits(model)
    sleep = Consolidation(model, 1, 2, updates=updates).begin()
    fill(model, 2, seed=3)
    return model, before, sleep


def test_the_teacher_is_the_state_before_the_sleep() -> None:
    model, before, _ = asleep()
    with teacher_view(model):
        assert torch.equal(logits(model), before)


def test_the_student_is_the_default_and_what_the_commit_makes_of_the_model() -> None:
    model, before, sleep = asleep()
    student = logits(model)
    assert not torch.equal(student, before)
    with student_view(model):
        assert torch.equal(logits(model), student)
    sleep.commit()
    torch.testing.assert_close(logits(model), student, rtol=1e-5, atol=1e-6)


def test_the_student_has_the_senders_experts_out_and_its_prospective_weights_in() -> None:
    model, _, _ = asleep()
    parts = {}
    with experts_view(model, 1, [0]):
        parts["sender in"] = logits(model)
    with experts_view(model, 2, [], training=False):
        parts["new expert out"] = logits(model)
    student = logits(model)
    for name, other in parts.items():
        assert not torch.equal(student, other), name
    layer = model.get_submodule("base_model.model.model.layers.0.mlp")
    moved = layer.levels("default")[0].get_parameter("next_up")
    with torch.no_grad():
        moved.mul_(3)
    assert not torch.equal(logits(model), student), "the prospective weights must be in use"
    with teacher_view(model):
        teacher = logits(model)
        with torch.no_grad():
            moved.mul_(3)
        assert torch.equal(logits(model), teacher), "the teacher must not see them"


def test_the_base_view_is_the_bare_model() -> None:
    model, _, _ = asleep()
    with base_view(model):
        assert torch.equal(logits(model), logits(build()))


def test_views_nest_and_survive_exceptions() -> None:
    model, before, _ = asleep()
    student = logits(model)
    with teacher_view(model):
        with student_view(model):
            with base_view(model):
                assert torch.equal(logits(model), logits(build()))
            assert torch.equal(logits(model), student)
        assert torch.equal(logits(model), before)
        with pytest.raises(RuntimeError, match="boom"):
            with base_view(model):
                raise RuntimeError("boom")
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), student)


def test_a_view_of_slots_that_are_not_active_is_refused_and_changes_nothing() -> None:
    model, _, _ = asleep()
    student = logits(model)
    for level, slots, training, message in (
        (3, [1], False, "not active"),
        (1, [0], True, "which has none"),
        (5, [0], False, "no level 5"),
    ):
        with pytest.raises(SlotError, match=message):
            with experts_view(model, level, slots, training=training):
                pass
    assert torch.equal(logits(model), student)


def test_generation_under_a_view_is_that_of_a_model_in_that_state() -> None:
    model, before, _ = asleep()
    prompt = tokens()
    with teacher_view(model):
        teacher = model.generate(input_ids=prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert torch.equal(teacher[:, prompt.shape[1]], before[:, -1].argmax(-1))


VIEWS: dict[str, Callable[[nn.Module], object]] = {
    "student": lambda model: nullcontext(),
    "teacher": teacher_view,
    "base": base_view,
    "one expert": lambda model: experts_view(model, 3, [0]),
}


def gradients(model: nn.Module, view: Callable[[nn.Module], object], leave_first: bool) -> list[Tensor]:
    """Return the gradients of a loss computed under `view`, with the backward pass outside of it if asked."""
    ids = tokens()
    embedding = model.get_input_embeddings().weight
    embedding.requires_grad_(True)
    embedding.grad = None
    model.zero_grad()
    with view(model):
        loss = model(input_ids=ids, labels=ids).loss
        if not leave_first:
            loss.backward()
    if leave_first:
        loss.backward()
    out = [embedding.grad.clone()]
    for parameter in model.parameters():
        if parameter.requires_grad and parameter is not embedding:
            out.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
    return out


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("reentrant", [False, True], ids=["nonreentrant", "reentrant"])
@pytest.mark.parametrize("leave_first", [False, True], ids=["backward_inside", "backward_outside"])
def test_gradient_checkpointing_recomputes_under_the_view_of_the_first_computation(
    view: Callable[[nn.Module], object], reentrant: bool, leave_first: bool
) -> None:
    model, _, _ = asleep()
    model.train()
    expected = gradients(model, view, leave_first)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model, view, leave_first)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_inside_another_view_does_not_confuse_checkpointing(reentrant: bool) -> None:
    model, _, _ = asleep()
    model.train()
    expected = gradients(model, VIEWS["student"], False)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    ids = tokens()
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    with teacher_view(model):
        before = logits(model)
        loss.backward()
        assert torch.equal(logits(model), before), "recomputing must restore the view"
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, expected[0], rtol=1e-6, atol=1e-8)


def test_checkpointing_by_other_means_can_ask_for_the_view() -> None:
    model, _, _ = asleep()
    layer = model.get_submodule("base_model.model.model.layers.0.mlp")
    x = torch.randn((1, 4, 16), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    with teacher_view(model):
        (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
        out = checkpoint(layer, x, use_reentrant=False, context_fn=checkpoint_context(model))
    (found,) = torch.autograd.grad(out.square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_copied_model_has_views_of_its_own() -> None:
    model, before, _ = asleep()
    student = logits(model)
    twin = copy.deepcopy(model).train()
    expected = gradients(twin, teacher_view, True)
    twin.activation_checkpointing_enable({"use_reentrant": False})
    for left, right in zip(gradients(twin, teacher_view, True), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)
    with teacher_view(twin):
        assert torch.equal(logits(model), student)
        assert torch.equal(logits(twin.eval()), before)


def test_checkpointing_traces_each_token_once() -> None:
    model, _, _ = asleep()
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    ids = tokens()
    with trace_routing(model, keep=True) as trace:
        model(input_ids=ids, labels=ids).loss.backward()
    assert {key: len(gates) for key, gates in trace.gates.items()} == {key: 1 for key in trace.gates}


@pytest.mark.slow
def test_compiled_models_follow_the_view() -> None:
    model, _, sleep = asleep()
    ids = tokens()
    expected = {}
    for name, view in VIEWS.items():
        with view(model), torch.no_grad():
            expected[name] = model(input_ids=ids).logits
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(model, backend=counting)
    after_round = []
    for _ in range(3):
        for name, view in VIEWS.items():
            with view(model), torch.no_grad():
                torch.testing.assert_close(compiled(input_ids=ids).logits, expected[name], rtol=1e-5, atol=1e-5)
        after_round.append(graphs)
    assert after_round[0] == after_round[2], "switching back to a view must not compile again"
    sleep.commit()
    with torch.no_grad():
        torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training_gives_the_same_gradients(checkpointing: bool) -> None:
    model, _, _ = asleep()
    model.train()
    expected = {name: gradients(model, view, True) for name, view in VIEWS.items()}
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        gradients(model, teacher_view, True)
    network = model.get_base_model()
    eager = network.forward
    network.forward = torch.compile(eager, backend="aot_eager")
    for name, view in VIEWS.items():
        found = gradients(model, view, True)
        for left, right in zip(found, expected[name], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_several_nights_adapters_can_teach_one_after_the_other() -> None:
    import peft

    model = with_memory(one_level(), adapter_name="monday")
    model.add_adapter("tuesday", one_level())
    states = {}
    for seed, name in enumerate(("monday", "tuesday")):
        model.set_adapter(name)
        learn(model, seed=seed)
        states[name] = logits(model)
    assert isinstance(model, peft.PeftModel)
    unlock(model, 1, adapter_name="tuesday")
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with adapters_view(model, ["monday"]):
        assert torch.equal(logits(model), states["monday"])
    with adapters_view(model, ["monday", "tuesday"]):
        both = logits(model)
    assert not torch.equal(both, states["monday"]) and not torch.equal(both, states["tuesday"])
    assert torch.equal(logits(model), states["tuesday"])
    assert training == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with pytest.raises(ValueError, match=r"named \['sunday'\]"):
        with adapters_view(model, ["sunday"]):
            pass
    activate(model, 1, adapter_name="tuesday")
    assert snapshot(model).keys()


def test_a_model_that_has_sampled_trains_though_a_freed_slot_lies_below_an_active_one() -> None:
    model = with_memory(one_level())
    learn(model, 1, seed=1)
    learn(model, 1, seed=2)
    reset(model, 1, [0])
    unlock(model, 1)
    fill(model, 1, seed=3)
    ids = tokens()
    with torch.inference_mode():
        model(input_ids=ids)
    model(input_ids=ids, labels=ids).loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())
