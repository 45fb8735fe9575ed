"""What is said and shared out before any worker starts; this needs no Ray."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from pydantic import ValidationError

from sleep_pipeline.dreaming import extras, night
from sleep_pipeline.dreaming.dreamer import dream_and_improve
from sleep_pipeline.dreaming.extras import check_workers
from sleep_pipeline.dreaming.night import dream_night
from sleep_pipeline.dreaming.rows import Dream, Row
from sleep_pipeline.dreaming.settings import DreamingSettings, RestEmSettings, TrialSettings
from sleep_pipeline.dreaming.tau import Probe
from sleep_pipeline.dreaming.trials import run_trials, share_out
from sleep_pipeline.night_hook import NightHook

TWO = DreamingSettings(trials=TrialSettings(workers=2), rest_em=RestEmSettings(rounds=1))
MISSING = r"dreaming\.trials\.workers=2 needs Ray .* pip install 'sleep-pipeline\[ray\]', or set 0"


def dream(length: int) -> Dream:
    return Dream((Row(tuple(range(3, 3 + length))),))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.fixture
def some_ray(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A Ray that has not been started, on a machine of two cores and one GPU."""
    module = ModuleType("ray")
    module.is_initialized = lambda: False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(extras, "usable_cores", lambda: 2)
    monkeypatch.setattr(extras, "_gpus", lambda: 1)
    return module


def never(*_: object, **__: object) -> None:
    raise AssertionError("this is long work")


@pytest.mark.usefixtures("no_ray")
def test_without_ray_nothing_is_trained_and_the_remedy_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=MISSING):
        run_trials(tiny_models.build(), [dream(5)], TWO.trials, never)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_ray")
def test_without_ray_nothing_is_dreamt(tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night, "sample_dreams", never)
    monkeypatch.setattr("sleep_pipeline.dreaming.rest_em.sample_dreams", never)
    contexts, probes = ["It rains.", "It snows."], [Probe(0, "Does it rain?", "Yes"), Probe(1, "Is it dry?", "No")]
    with pytest.raises(ModuleNotFoundError, match=MISSING):
        dream_night(tiny_model, tiny_tokenizer, contexts, probes, TWO)
    with pytest.raises(ModuleNotFoundError, match=MISSING):
        dream_and_improve(tiny_model, tiny_model, tiny_tokenizer, contexts, probes, TWO)


@pytest.mark.usefixtures("no_ray")
def test_without_ray_no_night_begins(tmp_path: Path) -> None:
    entries = {
        "models_folder": MemoryDataset(tmp_path),
        "params:dreaming": MemoryDataset(TWO.model_dump()),
        "params:machine": MemoryDataset({"device": "cpu"}),
    }
    nodes = [node(lambda *_: None, list(entries), None, name="dreams", tags=["night"])]
    with pytest.raises(ModuleNotFoundError, match=MISSING):
        NightHook().before_pipeline_run({}, Pipeline(nodes), DataCatalog(entries))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_ray")
def test_no_worker_needs_no_ray() -> None:
    check_workers(0)


@pytest.mark.usefixtures("some_ray")
def test_more_workers_than_cores_or_gpus_are_refused() -> None:
    check_workers(2)
    check_workers(1, "cuda")
    with pytest.raises(
        ValueError, match=r"workers=3 is more than there is: .* a core of its own, and there are 2; set"
    ):
        check_workers(3)
    with pytest.raises(ValueError, match=r"workers=2 is more than there is: .* a GPU of its own, and there is 1; set"):
        check_workers(2, "cuda")


def test_a_cluster_that_the_caller_started_is_counted_instead(some_ray: ModuleType) -> None:
    some_ray.is_initialized = lambda: True  # type: ignore[attr-defined]
    some_ray.cluster_resources = lambda: {"CPU": 8.0, "GPU": 4.0}  # type: ignore[attr-defined]
    check_workers(8)
    check_workers(4, "cuda")
    with pytest.raises(ValueError, match="there are 4"):
        check_workers(5, "cuda")


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValidationError, match="workers"):
        TrialSettings(workers=-1)


def loads(stacks: Sequence[Sequence[int]], dreams: Sequence[Dream], workers: int) -> list[int]:
    """Positions that each worker gets if the next stack goes to whoever has least."""
    found = [0] * workers
    for stack in stacks:
        found[found.index(min(found))] += len(stack) * max(dreams[index].longest for index in stack)
    return found


@given(
    sizes=st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=9), min_size=1, max_size=5),
    workers=st.integers(1, 4),
)
def test_stacks_are_shared_out_evenly_and_every_dream_once(sizes: list[list[int]], workers: int) -> None:
    dreams = [dream(length) for group in sizes for length in sorted(group)]
    starts = [sum(map(len, sizes[:at])) for at in range(len(sizes))]
    groups = [list(range(start, start + len(group))) for start, group in zip(starts, sizes, strict=True)]
    shared = share_out(groups, dreams, workers)
    assert sorted(index for stack in shared for index in stack) == list(range(len(dreams)))
    assert all(any(set(stack) <= set(group) for group in groups) for stack in shared)
    busiest = max(loads(shared, dreams, workers))
    assert busiest <= 1.1 * sum(loads(groups, dreams, 1)) / workers or all(len(stack) == 1 for stack in shared)


def test_stacks_that_are_even_already_are_not_cut() -> None:
    dreams = [dream(10)] * 8
    assert share_out([[0, 1, 2, 3], [4, 5, 6, 7]], dreams, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert share_out([list(range(8))], dreams, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert share_out([], dreams, 2) == []
