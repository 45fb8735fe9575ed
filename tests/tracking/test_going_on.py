"""A night that goes on is recorded in the run in which it began. Real MLflow, a toy night."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from sleep_pipeline.session import NightSession
from sleep_pipeline.tracking.run import TrackedRun

REGISTRY = """
from kedro.pipeline import Pipeline, node


def collect(folder, night):
    return night


def seed(collected, broken):
    if broken:
        raise ValueError("the night is broken")
    return collected


def register_pipelines():
    night = Pipeline(
        [
            node(collect, ["models_folder", "params:night"], "collected", tags=["night", "collect"]),
            node(seed, ["collected", "params:broken"], "seeded", tags=["night", "seed"]),
        ]
    )
    return {"sleep": night}
"""
FILES = {
    "mlflow.yml": "tracking_uri: sqlite:///runs.db\nartifact_location: files\ndefault_experiment: nights\n",
    "parameters.yml": "night: 1\nbroken: false\n",
    "globals.yml": "life: own\n",
    "catalog.yml": """
        models_folder: {type: sleep_pipeline.datasets.FolderDataset, filepath: "data/${globals:life}"}
        collected: {type: sleep_pipeline.datasets.FileDataset, filepath: "data/${globals:life}/1.json", format: json}
        seeded: {type: sleep_pipeline.datasets.FileDataset, filepath: "data/${globals:life}/2.json", format: json}
    """,
}


@pytest.fixture
def project(toy_project: Callable[..., Path], empty_database: Path) -> Path:
    """A toy project whose night collects and seeds, and can be broken."""
    path = toy_project(FILES)
    shutil.copy(empty_database, path / "runs.db")
    (registry,) = path.glob("src/*/pipeline_registry.py")
    registry.write_text(REGISTRY, encoding="utf-8")
    return path


def live(project: Path, broken: bool = False, life: str = "own") -> None:
    (project / "conf/base/globals.yml").write_text(f'life: "{life}"\n', encoding="utf-8")
    with NightSession.create(project_path=project, runtime_params={"broken": broken}) as session:
        session.run(pipeline_names=["sleep"])


def broken(project: Path, life: str = "own") -> None:
    with pytest.raises(ValueError, match="the night is broken"):
        live(project, broken=True, life=life)


def runs_of(project: Path) -> list[Run]:
    """All runs, the oldest first."""
    client = MlflowClient(f"sqlite:///{project}/runs.db")
    experiment = client.get_experiment_by_name("nights")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


def nights_of(project: Path) -> list[Run]:
    """The runs of night 1, without those of its phases."""
    return [run for run in runs_of(project) if run.info.run_name == "sleep night 1"]


def statuses(project: Path) -> list[tuple[str, str]]:
    """Name and status of every run, by name."""
    return sorted((str(run.info.run_name), str(run.info.status)) for run in runs_of(project))


def test_a_night_that_failed_ends_in_the_run_in_which_it_began(project: Path) -> None:
    broken(project)
    assert statuses(project) == [("collect", "FINISHED"), ("seed", "FAILED"), ("sleep night 1", "FAILED")]
    live(project)
    after = [("collect", "FINISHED"), ("seed", "FAILED"), ("seed", "FINISHED"), ("sleep night 1", "FINISHED")]
    assert statuses(project) == after


def test_phases_of_a_night_that_was_killed_do_not_run_for_ever(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        # A process that is killed ends none of its runs.
        patch.setattr(TrackedRun, "finish", lambda *_: None)
        broken(project)
    assert {status for _, status in statuses(project)} == {"RUNNING"}
    live(project)
    after = [("collect", "KILLED"), ("seed", "FINISHED"), ("seed", "KILLED"), ("sleep night 1", "FINISHED")]
    assert statuses(project) == after


@pytest.mark.parametrize("life", ["new", "it's new"])
def test_a_new_life_leaves_the_run_of_the_old_one_alone(project: Path, life: str) -> None:
    broken(project)
    live(project, life=life)
    live(project)
    nights = nights_of(project)
    assert [run.info.status for run in nights] == ["FINISHED", "FINISHED"]
    assert [run.data.tags["life"] for run in nights] == [(project / "data" / name).as_uri() for name in ("own", life)]


def test_a_run_that_tells_no_life_is_not_taken_up(project: Path) -> None:
    broken(project)
    (night,) = nights_of(project)
    MlflowClient(f"sqlite:///{project}/runs.db").delete_tag(night.info.run_id, "life")
    live(project)
    assert [run.info.status for run in nights_of(project)] == ["FAILED", "FINISHED"]
