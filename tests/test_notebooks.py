"""The notebooks are clean, and their cells run from top to bottom."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sleep_pipeline.evaluation.retention import Retention

NAMES = ("01_first_night", "02_compare_nights")


def cells(project_root: Path, name: str, kind: str = "code") -> list[str]:
    notebook = json.loads((project_root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def execute(sources: list[str]) -> dict[str, Any]:
    """Run code cells in one namespace, as a notebook does."""
    namespace: dict[str, Any] = {}
    for number, source in enumerate(sources):
        exec(compile(source, f"cell {number}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_what_a_run_leaves_in_it(project_root: Path, name: str) -> None:
    notebook = json.loads((project_root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_the_first_night_runs_and_fills_one_slot(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = cells(project_root, NAMES[0])
    small = {"STEPS = 120": "STEPS = 2", "REPLIES = 24": "REPLIES = 4"}
    for before, after in small.items():
        assert sources[0].count(before) == 1
        sources[0] = sources[0].replace(before, after)
    found = execute(sources)
    assert found["describe"](found["model"]).levels[0]["active"] == 1
    assert len(found["after"]) == len(found["questions"])
    right = [
        answer.casefold() in reply.casefold()
        for (_, answer, _), reply in zip(found["questions"], found["with_text"], strict=True)
    ]
    assert all(right), "a newcomer's model must read its texts"


@pytest.fixture
def project(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without a night; the notebook is started in one of its folders."""
    shutil.copy(project_root / "pyproject.toml", tmp_path)
    for name in ("conf", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def report(project: Path, night: int, retention: Retention, **scores: Any) -> None:
    folder = project / "data/08_reporting" / f"night_{night:03d}"
    folder.mkdir(parents=True)
    metrics = {"night": night, "perplexity": 90.0 + night, "seconds": {"sampling": 30.0, "training": 90.0}, **scores}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "retention.json").write_text(json.dumps(retention.to_json()), encoding="utf-8")


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "samples": 4}


def test_without_a_night_the_comparison_says_what_to_run(project_root: Path, project: Path, capsys: Any) -> None:
    found = execute(cells(project_root, NAMES[1]))
    told = capsys.readouterr().out
    assert "`kedro run --pipelines=sleep`" in told
    assert "No runs are recorded here" in told
    assert found["scores"].empty


def test_nights_are_compared_from_their_reports(project_root: Path, project: Path) -> None:
    first = Retention().append(1, [[1, 1, 0, 1]])
    report(project, 1, first, recall=estimate(0.75), reading=estimate(0.9), forgetting=None)
    (project / "data/08_reporting/night_001/registered.json").write_text('{"decision": {"promote": true}}')
    second = first.append(2, [[1, 0, 0, 1], [1, 1]])
    report(project, 2, second, recall=estimate(1.0), reading=estimate(0.9), forgetting=estimate(0.25))
    found = execute(cells(project_root, NAMES[1]))
    assert list(found["scores"]["recall"]) == [0.75, 1.0]
    assert list(found["scores"]["minutes"]) == [2.0, 2.0]
    assert list(found["scores"]["decision"]) == ["promoted", "not promoted"]
    assert found["R"][1].tolist() == [0.5, 1.0]
    drawn = {text.get_text() for text in found["axes"].texts}
    assert drawn == {"0.75", "0.50", "1.00"}
    assert [line.get_label() for line in found["left"].containers] == ["recall", "accuracy", "forgetting", "reading"]


def test_of_a_long_life_the_matrix_stays_readable(project_root: Path, project: Path) -> None:
    life = Retention(tuple(tuple((1,) for _ in range(night + 1)) for night in range(60)))
    report(project, 60, life, recall=estimate(1.0))
    axes = execute(cells(project_root, NAMES[1]))["axes"]
    assert not axes.texts and len(axes.get_xticks()) <= 21
    assert max(axes.figure.get_size_inches()) <= 13


@pytest.mark.slow
def test_runs_in_mlflow_stand_beside_the_scores(
    project_root: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    uri = f"sqlite:///{project}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    experiment, life = client.create_experiment("nights"), project / "data" / "06_models"

    def record(tags: dict[str, str], perplexity: float | None, steps: int) -> None:
        run = client.create_run(experiment, tags=tags)
        client.log_param(run.info.run_id, "seeding.optimizer.steps", steps)
        client.log_param(run.info.run_id, "model", "embedded")
        if perplexity is not None:
            client.log_metric(run.info.run_id, "night/perplexity", perplexity)
        client.set_terminated(run.info.run_id)

    record({"night": "1", "life": life.as_uri()}, 91.0, 320)
    record({"phase": "evaluate"}, None, 320)
    record({"night": "1", "life": (life / "smoke").as_uri()}, 59.0, 10)
    record({"night": "2", "life": life.as_uri()}, 92.0, 640)
    record({"night": "3", "life": life.as_uri(), "nothing_to_do": "no new memory"}, None, 320)
    try:
        runs = execute(cells(project_root, NAMES[1]))["runs"]
    finally:
        # Not the default's own address: MLflow would go on using it for every later test.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    assert list(runs["tags.night"]) == ["1", "2"], "no phases, no other life, no night without anything to learn"
    assert list(runs["metrics.night/perplexity"]) == [91.0, 92.0]
    assert [name for name in runs if name.startswith("params.")] == ["params.seeding.optimizer.steps"]
