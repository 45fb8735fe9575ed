"""The chunked divergences against sums written out token by token in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_pipeline.seeding.divergences import (
    KINDS,
    CachedTeacher,
    Kind,
    LiveTeacher,
    cache_teacher,
    compare_tokens,
    divergence,
    token_divergences,
)

N, D, V = 7, 5, 11


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    parts = [math.exp(value - top) for value in row]
    return [part / sum(parts) for part in parts]


def by_hand(teacher: list[float], student: list[float], kind: Kind, beta: float) -> float:
    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    if kind == "forward_kl":
        return kl(teacher, student)
    if kind == "reverse_kl":
        return kl(student, teacher)
    mixed = [beta * a + (1 - beta) * b for a, b in zip(teacher, student, strict=True)]
    return beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)


def draw(seed: int = 0, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student's hidden states, its head's weight, teacher's logits."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, logits = (
        scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((N, D), (V, D), (N, V))
    )
    return hidden.requires_grad_(), weight.requires_grad_(), logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_a_whole_cache_and_a_live_teacher_equal_the_sums_written_out(kind: Kind, beta: float) -> None:
    hidden, weight, logits = draw()
    cached = token_divergences(hidden, lambda h: h @ weight.T, cache_teacher(logits, V), kind, beta, rows_at_a_time=3)
    live = token_divergences(
        hidden, lambda h: h @ weight.T, LiveTeacher(logits, lambda h: h), kind, beta, rows_at_a_time=2
    )
    student = (hidden @ weight.T).tolist()
    expected = [by_hand(softmax(t), softmax(s), kind, beta) for t, s in zip(logits.tolist(), student, strict=True)]
    assert cached.tolist() == pytest.approx(expected, rel=1e-9)
    assert live.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4])
def test_a_cached_teacher_is_compared_over_its_tokens_and_all_others_as_one(kind: Kind, k: int) -> None:
    hidden, weight, logits = draw(1)
    values = token_divergences(hidden, lambda h: h @ weight.T, cache_teacher(logits, k), kind)
    for value, taught, said in zip(values.tolist(), logits.tolist(), (hidden @ weight.T).tolist(), strict=True):
        teacher, student = softmax(taught), softmax(said)
        top = sorted(range(V), key=lambda token: -teacher[token])[:k]
        lumped = [
            [p[token] for token in top] + [sum(p[t] for t in range(V) if t not in top)] for p in (teacher, student)
        ]
        assert value == pytest.approx(by_hand(lumped[0], lumped[1], kind, 0.5), rel=1e-9)
        assert value <= by_hand(teacher, student, kind, 0.5) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [3, V, None])
def test_gradients_agree_with_finite_differences_and_do_not_depend_on_the_chunks(kind: Kind, k: int | None) -> None:
    hidden, weight, logits = draw(2, 1.0)
    teacher = LiveTeacher(logits, lambda h: h) if k is None else cache_teacher(logits, k)

    def total(h: torch.Tensor, w: torch.Tensor, rows: int) -> torch.Tensor:
        return token_divergences(h, lambda x: x @ w.T, teacher, kind, rows_at_a_time=rows).sum()

    assert torch.autograd.gradcheck(lambda h, w: total(h, w, 3), (hidden, weight))
    whole = torch.autograd.grad(total(hidden, weight, N), (hidden, weight))
    pieces = torch.autograd.grad(total(hidden, weight, 1), (hidden, weight))
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_direction_of_a_divergence_is_the_one_that_it_is_named_for() -> None:
    narrow, wide = torch.tensor([[0.999, 0.001]]).log(), torch.tensor([[0.5, 0.5]]).log()
    # A student that misses half of what the teacher says pays in forward KL, and little in reverse KL.
    assert divergence(wide, narrow, "forward_kl") > 3 * divergence(wide, narrow, "reverse_kl")


def test_generalised_jsd_tends_to_the_kullback_leibler_divergences() -> None:
    _, _, logits = draw(3)
    teacher, student = torch.log_softmax(logits, -1), torch.log_softmax(logits.flip(0), -1)
    for beta, kind in ((1e-7, "forward_kl"), (1 - 1e-7, "reverse_kl")):
        share = min(beta, 1 - beta)
        limit = divergence(teacher, student, "jsd", beta) / share
        torch.testing.assert_close(limit, divergence(teacher, student, kind), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


@given(st.integers(0, 10**6), st.floats(0.1, 300), st.sampled_from(KINDS), st.integers(1, V))
@settings(max_examples=60, deadline=None)
def test_divergences_are_finite_and_not_negative_however_sharp_the_distributions(
    seed: int, scale: float, kind: Kind, k: int
) -> None:
    hidden, weight, logits = draw(seed, scale)
    values = token_divergences(hidden, lambda h: h @ weight.T, cache_teacher(logits, k), kind)
    assert torch.isfinite(values).all() and (values > -1e-9).all()
    gradient = torch.autograd.grad(values.sum(), hidden)[0]
    assert torch.isfinite(gradient).all()


def test_a_cache_keeps_the_exact_mass_of_what_it_leaves_out() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0, -1.0]])
    cached = cache_teacher(logits, 1)
    rest = sum(math.exp(value - 60) for value in (0.0, 0.0, -1.0))
    assert cached.tail_N.item() == pytest.approx(math.log(rest), rel=1e-5)


def test_logits_of_the_whole_batch_are_never_held() -> None:
    largest = 0

    def head(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, hidden.shape[0])
        return hidden @ weight.T

    hidden, weight, logits = draw()
    token_divergences(hidden, head, cache_teacher(logits, 3), "forward_kl", rows_at_a_time=2).sum().backward()
    assert largest == 2


def test_what_does_not_fit_together_is_refused() -> None:
    hidden, weight, logits = draw()
    with pytest.raises(ValueError, match="top_k of the teacher cache is 12; give 1 to 11"):
        cache_teacher(logits, 12)
    with pytest.raises(ValueError, match="the teacher has 3 positions and the student 7"):
        token_divergences(hidden, lambda h: h @ weight.T, cache_teacher(logits[:3], 2), "jsd")
    other = CachedTeacher(torch.full((N, 1), 40), torch.zeros(N, 1), torch.zeros(N))
    with pytest.raises(ValueError, match="token 40, the student a vocabulary of 11"):
        token_divergences(hidden, lambda h: h @ weight.T, other, "jsd")
    with pytest.raises(ValueError, match="same tokenizer"):
        token_divergences(hidden, lambda h: h @ weight.T, LiveTeacher(logits, lambda h: h[:, :9]), "jsd")
    with pytest.raises(ValueError, match="beta of jsd is 1"):
        divergence(logits, logits, "jsd", 1.0)
    with pytest.raises(ValueError, match="'kl' is unknown; choose one of forward_kl"):
        divergence(logits, logits, "kl")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [3, None])
@pytest.mark.parametrize("rows", [None, 2])
def test_log_probabilities_of_what_was_said_come_from_the_same_logits(k: int | None, rows: int | None) -> None:
    hidden, weight, logits = draw(4, 1.0)
    teacher = LiveTeacher(logits, lambda h: h) if k is None else cache_teacher(logits, k)
    said = torch.tensor([0, 10, 3, 3, 7, 1, 9])
    calls = []

    def head(h: torch.Tensor) -> torch.Tensor:
        calls.append(len(h))
        return h @ weight.T

    distances, log_probs = compare_tokens(hidden, head, teacher, "jsd", 0.3, said, rows)
    assert sum(calls) == N + (rows is None), "one pass over the tokens, after a look at the size of the vocabulary"
    assert torch.equal(
        distances, token_divergences(hidden, lambda h: h @ weight.T, teacher, "jsd", 0.3, rows_at_a_time=rows)
    )
    wanted = [
        math.log(softmax(row)[token]) for row, token in zip((hidden @ weight.T).tolist(), said.tolist(), strict=True)
    ]
    assert log_probs.tolist() == pytest.approx(wanted, rel=1e-9)
    plain = torch.log_softmax(hidden @ weight.T, -1).gather(-1, said[:, None]).sum()
    for found, expected in zip(
        torch.autograd.grad(log_probs.sum(), (hidden, weight)),
        torch.autograd.grad(plain, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_without_tokens_there_are_no_log_probabilities_and_without_positions_nothing() -> None:
    hidden, weight, logits = draw()
    distances, log_probs = compare_tokens(hidden, lambda h: h @ weight.T, cache_teacher(logits, 2), "forward_kl")
    assert (distances.shape, log_probs.shape) == ((N,), (0,))
    nothing = compare_tokens(hidden[:0], lambda h: h @ weight.T, cache_teacher(logits, 2)[slice(0, 0)], "forward_kl")
    assert [part.shape for part in nothing] == [(0,), (0,)]
