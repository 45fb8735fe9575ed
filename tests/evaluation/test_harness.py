"""Tasks of lm-evaluation-harness: by a stand-in for its two entrances, and for real where it is installed."""

import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sleep_pipeline.evaluation.harness import check_harness, fetch_harness, harness_scores
from sleep_pipeline.evaluation.settings import EvaluationSettings, HarnessSettings

FOUND = {
    "results": {
        "toy": {"alias": "toy", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 4, "f1_stderr,none": "N/A"},
        "sums": {"alias": "sums", "exact_match,strict-match": 1, "perplexity,none": float("nan")},
    },
    "n-samples": {"toy": {"original": 9, "effective": 4}},
}
SCORES = {
    "harness/toy/acc": 0.5,
    "harness/toy/acc_stderr": 0.1,
    "harness/toy/samples": 4.0,
    "harness/sums/exact_match.strict-match": 1.0,
}


class StandIn:
    """What the harness was asked; `built_in` and `own` are the tasks it knows."""

    def __init__(self) -> None:
        self.built_in, self.own = ["arc_easy", "arc_challenge", "toy"], ["mine"]
        self.asked: list[dict[str, Any]] = []
        self.wrapped: list[dict[str, Any]] = []
        self.fetched: list[list[str]] = []
        self.trouble: Exception | None = None

    def manager(self, include_path: str | None = None, include_defaults: bool = True) -> SimpleNamespace:
        names = (self.own if include_path else []) + (self.built_in if include_defaults else [])
        return SimpleNamespace(all_tasks=names, all_subtasks=names, defaults=include_defaults)

    def fetch(self, names: list[str], manager: SimpleNamespace) -> None:
        if self.trouble:
            raise self.trouble
        self.fetched.append(names)

    def wrap(self, **arguments: Any) -> str:
        self.wrapped.append(arguments)
        return "wrapped"

    def evaluate(self, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        return FOUND


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    modules = {
        "lm_eval": {"simple_evaluate": stand_in.evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": stand_in.wrap},
        "lm_eval.tasks": {"TaskManager": stand_in.manager, "get_task_dict": stand_in.fetch},
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    return stand_in


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)


def test_scores_are_flat_finite_and_named_by_task_metric_and_filter(stand_in: StandIn) -> None:
    assert harness_scores("model", "tokenizer", HarnessSettings(tasks=("toy",))) == SCORES  # type: ignore[arg-type]


def test_the_harness_gets_the_model_in_memory_and_the_settings(stand_in: StandIn) -> None:
    settings = HarnessSettings(tasks=("toy",), limit=3, num_fewshot=2, batch_size=5, chat_template=True)
    harness_scores("model", "tokenizer", settings)  # type: ignore[arg-type]
    assert stand_in.wrapped == [{"pretrained": "model", "tokenizer": "tokenizer", "batch_size": 5}]
    (asked,) = stand_in.asked
    wanted = {"model": "wrapped", "tasks": ["toy"], "limit": 3, "num_fewshot": 2, "apply_chat_template": True}
    assert asked.items() >= wanted.items()


@pytest.mark.usefixtures("absent")
def test_without_tasks_the_harness_is_not_needed() -> None:
    settings = EvaluationSettings().harness
    check_harness(settings)
    fetch_harness(settings)
    assert harness_scores("model", "tokenizer", settings) == {}  # type: ignore[arg-type]


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize("check", [check_harness, fetch_harness])
def test_without_its_extra_the_harness_says_how_to_get_it(check: Any) -> None:
    message = r"evaluation\.harness\.tasks=\['toy'\] needs .*pip install 'sleep-pipeline\[harness\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        check(HarnessSettings(tasks=("toy",)))


@pytest.mark.parametrize(
    ("name", "remedy"), [("arc_esay", "did you mean 'arc_easy'"), ("zzz", "`lm-eval ls tasks` lists them all")]
)
def test_a_task_that_there_is_not_is_named_with_those_like_it(stand_in: StandIn, name: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"harness.tasks=.*: there is no task '{name}'; {remedy}"):
        check_harness(HarnessSettings(tasks=("toy", name)))


def test_a_folder_of_tasks_that_there_is_not_is_an_error(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"harness\.include_path='.*none' is no folder"):
        check_harness(HarnessSettings(tasks=("mine",), include_path=str(tmp_path / "none")))


@pytest.mark.parametrize(("tasks", "defaults"), [(("mine",), False), (("mine", "toy"), True)])
def test_the_harnesss_own_declarations_are_read_only_where_one_is_asked_for(
    stand_in: StandIn, tmp_path: Path, tasks: tuple[str, ...], defaults: bool
) -> None:
    harness_scores("model", "tokenizer", HarnessSettings(tasks=tasks, include_path=str(tmp_path)))  # type: ignore[arg-type]
    assert stand_in.asked[0]["task_manager"].defaults is defaults


def test_data_are_fetched_before_the_night_and_what_cannot_be_had_is_named(stand_in: StandIn) -> None:
    settings = HarnessSettings(tasks=("toy",))
    check_harness(settings)
    assert stand_in.fetched == []
    fetch_harness(settings)
    assert stand_in.fetched == [["toy"]]
    stand_in.trouble = ConnectionError("no hub")
    with pytest.raises(RuntimeError, match=r"harness\.tasks=\['toy'\] cannot be loaded \(ConnectionError: no hub\)"):
        fetch_harness(settings)


@pytest.mark.usefixtures("absent")
def test_a_night_whose_tasks_cannot_be_run_does_not_begin(tmp_path: Path) -> None:
    from kedro.io import DataCatalog, MemoryDataset
    from kedro.pipeline import Pipeline, node

    from sleep_pipeline.night_hook import NightHook

    parameters = EvaluationSettings(harness=HarnessSettings(tasks=("toy",)))
    given = {"params:evaluation": parameters, "models_folder": tmp_path}
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in given.items()})
    pipeline = Pipeline([node(lambda evaluation: 1, "params:evaluation", "scores", name="ask", tags=["night"])])
    with pytest.raises(ModuleNotFoundError, match=r"sleep-pipeline\[harness\]"):
        NightHook().before_pipeline_run({}, pipeline, catalog)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("earlier", "before", "asked"),
    [
        (None, SCORES, 2),
        (
            {"harness": {"asked": {"tasks": ["toy"], "limit": 9, "chat_template": False}, "scores": {"x": 1.0}}},
            SCORES,
            2,
        ),
        (
            {"harness": {"asked": {"tasks": ["toy"], "limit": 100, "chat_template": False}, "scores": {"x": 1.0}}},
            {"x": 1.0},
            1,
        ),
        ({}, SCORES, 2),
    ],
    ids=["the first night asks the base model", "asked otherwise", "asked the same", "never asked"],
)
def test_the_scores_before_are_the_parents_own_if_it_was_asked_the_same(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, earlier: Any, before: dict[str, float], asked: int
) -> None:
    from sleep_pipeline.pipelines.evaluate.nodes import _harness

    views = []

    @contextmanager
    def view(name: str) -> Iterator[None]:
        views.append(name)
        yield

    monkeypatch.setattr("sleep_pipeline.memory.base_view", lambda model: view("base"))
    opened: Any = SimpleNamespace(model="model", tokenizer="tokenizer")
    found = _harness(opened, earlier, HarnessSettings(tasks=("toy",)), lambda: view("parent"))
    assert views == ([] if asked == 1 else ["base"] if earlier is None else ["parent"])
    assert (found["scores"], found["before"], len(stand_in.asked)) == (SCORES, before, asked)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_the_real_harness_runs_a_task_of_ones_own(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"Is {n} even?", "choices": ["yes", "no"], "answer": n % 2} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    declaration = {
        "task": "even_numbers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "even_numbers.yaml").write_text(json.dumps(declaration), encoding="utf-8")
    settings = HarnessSettings(tasks=("even_numbers",), include_path=str(tmp_path), limit=4)
    fetch_harness(settings)
    scores = harness_scores(tiny_model, tiny_tokenizer, settings)
    assert set(scores) == {f"harness/even_numbers/{name}" for name in ("acc", "acc_stderr", "samples")}
    assert scores["harness/even_numbers/samples"] == 4
    assert 0 <= scores["harness/even_numbers/acc"] <= 1
