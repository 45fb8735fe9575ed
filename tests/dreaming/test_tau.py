from typing import Any

import pytest
import torch

from sleep_pipeline.dreaming.dreams import DreamText, to_rows
from sleep_pipeline.dreaming.rows import exact_match
from sleep_pipeline.dreaming.settings import TauSettings, TrialSettings
from sleep_pipeline.dreaming.stacked_lora import adapters_on, stack
from sleep_pipeline.dreaming.tau import Measure, Probe, held_out_rows, make_measure
from sleep_pipeline.dreaming.trials import run_trials
from sleep_pipeline.generation import reading
from sleep_pipeline.generation.likelihood import reply_log_probs

PROBES = [
    Probe(0, "Where does Mira live?", "In Osk"),
    Probe(0, "Who?", "Mira"),
    Probe(1, "How many inns are there?", "12"),
]
MEASURES = {
    "likelihood": TauSettings(rows_at_once=4),
    "exact": TauSettings(kind="questions", rows_at_once=4),
    "normalised": TauSettings(kind="questions", match="normalised", rows_at_once=4),
}
TRIALS = TrialSettings(steps=150, lr=0.02)


@pytest.fixture(scope="module")
def trained(tiny_settings: Any, tiny_tokenizer: Any) -> Any:
    """A model and three copies of it that learned two probes, one, and something else."""
    from sleep_pipeline.pretraining.trainer import build_model

    model = build_model(tiny_settings.architecture, tiny_tokenizer, seed=0).eval()
    taught = [PROBES[:2], PROBES[2:], [Probe(0, "Why?", "Because")]]
    dreams = [
        to_rows(tiny_tokenizer, DreamText(0, "", "", "", "", tuple((p.question, p.answer) for p in probes)))
        for probes in taught
    ]
    return model, [trial.adapter for trial in run_trials(model, dreams, TRIALS).trials]


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_all_copies_at_once_get_what_each_gets_alone(name: str, trained: Any, tiny_tokenizer: Any) -> None:
    model, adapters = trained
    measure: Measure = make_measure(tiny_tokenizer, PROBES, MEASURES[name])
    with torch.no_grad(), adapters_on(model, stack(adapters)):
        together = measure(model, [0, 1, 2])
    for adapter, marks in zip(adapters, together, strict=True):
        with torch.no_grad(), adapters_on(model, adapter):
            assert measure(model, [0])[0] == pytest.approx(marks, abs=1e-4)
    assert together[0] != together[1] != together[2]


def test_the_likelihood_is_that_of_the_answers_tokens(trained: Any, tiny_tokenizer: Any) -> None:
    model, _ = trained
    turns = [
        [{"role": "user", "content": probe.question}, {"role": "assistant", "content": probe.answer}]
        for probe in PROBES
    ]
    wanted = [sum(values) / len(values) for values in reply_log_probs(model, tiny_tokenizer, turns)]
    assert make_measure(tiny_tokenizer, PROBES, MEASURES["likelihood"]).before(model) == pytest.approx(wanted, abs=1e-4)


def test_what_was_learned_is_given_and_nothing_else(trained: Any, tiny_tokenizer: Any) -> None:
    model, adapters = trained
    measure = make_measure(tiny_tokenizer, PROBES, MEASURES["exact"])
    assert measure.before(model) == (0.0, 0.0, 0.0)
    with torch.no_grad(), adapters_on(model, stack(adapters)):
        marks = measure(model, [0, 1, 2])
        rows = [row for context in held_out_rows(tiny_tokenizer, PROBES, 2) for row in context]
        assert exact_match(model, [rows] * 3) == pytest.approx([sum(mark) / 3 for mark in marks])
    assert marks[:2] == [(1.0, 1.0, 0.0), (0.0, 0.0, 1.0)]


def test_a_normalised_answer_need_not_be_word_for_word(trained: Any, tiny_tokenizer: Any) -> None:
    model, adapters = trained
    asked = [Probe(0, "Who?", "mira."), Probe(0, "Who?", "Jon")]
    for name, wanted in (("exact", (0.0, 0.0)), ("normalised", (1.0, 0.0))):
        with torch.no_grad(), adapters_on(model, adapters[0]):
            assert make_measure(tiny_tokenizer, asked, MEASURES[name])(model, [0]) == [wanted]


def test_probes_are_told_apart_by_context(tiny_tokenizer: Any) -> None:
    rows = held_out_rows(tiny_tokenizer, PROBES, 3)
    assert [len(of) for of in rows] == [2, 1, 0]


def test_a_measure_needs_probes(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no probe to measure by"):
        make_measure(tiny_tokenizer, [], TauSettings())


def test_logits_are_bounded_and_every_probe_is_read_once(
    trained: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = trained
    many = [Probe(0, probe.question, probe.answer * times) for probe in PROBES for times in (1, 2, 9)]
    measure: Any = make_measure(tiny_tokenizer, many, TauSettings())
    batches: list[list[int]] = []
    read = measure._read

    def noted(model: Any, batch: list[int], copies: int) -> torch.Tensor:
        batches.append(batch)
        return read(model, batch, copies)

    monkeypatch.setattr(measure, "_read", noted)
    whole = measure.before(model)
    assert len(batches) == 1
    batches.clear()
    longest = max(len(row.ids) - row.start + 1 for row in measure.rows)
    monkeypatch.setattr(reading, "LOGITS", 2 * longest * model.config.vocab_size)
    assert measure.before(model) == pytest.approx(whole, abs=1e-5)
    assert sorted(index for batch in batches for index in batch) == list(range(len(many)))
    assert 1 < len(batches) < len(many)
