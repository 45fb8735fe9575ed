"""One `kedro run` is one MLflow run. Real MLflow on a throw-away SQLite database, a toy Kedro project."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.session import KedroSession
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from sleep_pipeline import tracking
from sleep_pipeline.metrics import NullSink
from sleep_pipeline.session import NightSession
from sleep_pipeline.tracking.git import GitState
from sleep_pipeline.tracking.run import TrackedRun, TrackingError

SETTINGS = """
tracking_uri: sqlite:///runs.db
artifact_location: files
default_experiment: other
experiments: {toy: toys}
"""


@pytest.fixture
def project(toy_project: Callable[..., Path], empty_database: Path) -> Path:
    """A toy project with tracking on."""
    path = toy_project({"mlflow.yml": SETTINGS})
    shutil.copy(empty_database, path / "runs.db")
    return path


def client_of(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project}/runs.db")


def runs_of(project: Path, experiment: str = "toys") -> list[Run]:
    client = client_of(project)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id], order_by=["start_time ASC"]))


def execute(project: Path, pipelines: tuple[str, ...] = ("toy",), **parameters: Any) -> None:
    with NightSession.create(project_path=project, runtime_params=parameters or None) as session:
        session.run(pipeline_names=list(pipelines))


def test_a_run_is_recorded_with_what_it_was_given(project: Path) -> None:
    execute(project)
    (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "toy"
    assert run.data.params == {
        "toy.steps": "3",
        "toy.fail": "false",
        "toy.optimizer.lr": "0.1",
        "toy.optimizer.betas": "[0.9, 0.95]",
    }
    assert run.data.tags["kedro.pipeline"] == "toy"
    assert run.data.tags["kedro.env"] == "base"


def test_a_server_that_goes_away_ends_no_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(MlflowClient, "set_terminated", gone)
    monkeypatch.setattr(TrackedRun, "set_tags", gone)
    monkeypatch.setattr(TrackedRun, "log_params", gone)
    execute(project)
    assert "MLflow does not take what the run says (OSError: connection refused)" in caplog.text
    with pytest.raises(ValueError, match="the toy is broken"):
        execute(project, toy={"fail": True})


def made_elsewhere(project: Path) -> str:
    """Make the experiment of the toy as one of a project that was moved: its folder cannot be made any more."""
    was = project.parent / "was"
    was.touch()
    return client_of(project).create_experiment("toys", artifact_location=(was / "files" / "toys").as_uri())


def test_a_project_that_was_moved_still_runs_and_is_told_what_to_do(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    number = made_elsewhere(project)
    changed = GitState("0" * 40, "main", "+ a change", ("new.py",))
    monkeypatch.setattr("sleep_pipeline.tracking.hooks.git_state", lambda _: changed)
    execute(project)
    execute(project)
    assert [run.info.status for run in runs_of(project)] == ["FINISHED"] * 2
    renaming = f"mlflow experiments rename --experiment-id {number} --new-name 'toys before'"
    assert caplog.text.count(renaming) == 1, "once"
    client_of(project).rename_experiment(number, "toys before")
    caplog.clear()
    execute(project)
    (run,) = runs_of(project)
    assert (project / "files" / "toys" / run.info.run_id / "artifacts" / "git" / "untracked.txt").is_file()
    assert "was the project moved" not in caplog.text


def test_a_folder_that_was_moved_and_linked_is_where_files_go(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    (project.parent / "was").symlink_to(project)
    elsewhere = (project.parent / "was" / "files" / "toys").as_uri()
    client_of(project).create_experiment("toys", artifact_location=elsewhere)
    execute(project)
    assert "was the project moved" not in caplog.text


def test_step_metrics_and_durations_are_recorded(project: Path) -> None:
    execute(project)
    (run,) = runs_of(project)
    history = client_of(project).get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 1 / 2), (2, 1 / 3)]
    assert 0.0 <= run.data.metrics["seconds/work_node"] <= run.data.metrics["seconds/total"]


@pytest.mark.slow
def test_runtime_parameters_are_recorded_as_they_were_used(project: Path) -> None:
    execute(project, toy={"optimizer": {"lr": 0.5}})
    assert runs_of(project)[0].data.params["toy.optimizer.lr"] == "0.5"


def test_the_database_lies_in_the_project_wherever_the_command_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    execute(project)
    assert len(runs_of(project)) == 1
    assert list(elsewhere.iterdir()) == []


def test_a_failed_run_ends_failed_and_says_why(project: Path) -> None:
    with pytest.raises(ValueError, match="the toy is broken"):
        execute(project, toy={"fail": True})
    (run,) = runs_of(project)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "ValueError: the toy is broken"
    assert run.data.tags["error.node"] == "work_node"
    assert run.data.metrics["loss"] == 1 / 3


def test_a_run_with_nothing_to_do_says_so_and_is_no_failure(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    execute(project, toy={"steps": 0})
    (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    assert run.data.tags["nothing_to_do"] == "there is no step to take"
    assert "error" not in run.data.tags
    assert "there is no step to take" in caplog.text


def test_other_users_cannot_read_what_a_run_writes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KedroSession, "run", lambda *_, **__: (project / "made").write_text("private"))
    before = os.umask(0o022)
    try:
        execute(project)
        assert os.umask(0o022) == 0o022, "and what comes after the run is written as before"
    finally:
        os.umask(before)
    assert (project / "made").stat().st_mode & 0o777 == 0o640


def test_a_second_session_of_the_process_gets_a_run_of_its_own(project: Path) -> None:
    execute(project, toy={"steps": 2})
    execute(project, toy={"steps": 4})
    first, second = runs_of(project)
    assert (first.data.params["toy.steps"], second.data.params["toy.steps"]) == ("2", "4")
    assert len(client_of(project).get_metric_history(first.info.run_id, "loss")) == 2
    assert len(client_of(project).get_metric_history(second.info.run_id, "loss")) == 4


def test_a_run_that_was_interrupted_is_closed_by_the_next_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kedro.runner.SequentialRunner.run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            execute(project)
    execute(project)
    assert [run.info.status for run in runs_of(project)] == ["KILLED", "FINISHED"]


def test_a_run_is_attached_to_by_its_id(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(project)
    (first,) = runs_of(project)
    monkeypatch.setenv("MLFLOW_RUN_ID", first.info.run_id)
    execute(project, toy={"steps": 5})
    (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    # Parameters of a run never change; the metrics of both commands stand side by side.
    assert run.data.params["toy.steps"] == "3"
    assert len(client_of(project).get_metric_history(run.info.run_id, "loss")) == 8


def test_attaching_to_a_run_that_does_not_exist_is_an_error(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match=r"MLFLOW_RUN_ID=000.*unset the variable"):
        execute(project)


def test_a_deleted_experiment_is_an_error_with_its_remedy(project: Path) -> None:
    client = client_of(project)
    client.delete_experiment(client.create_experiment("toys"))
    with pytest.raises(TrackingError, match=r"'toys'.*deleted.*experiments restore"):
        execute(project)


def test_pipelines_without_an_experiment_of_their_own_share_one(project: Path) -> None:
    execute(project, pipelines=("__default__",))
    assert len(runs_of(project, "other")) == 1


def test_the_night_becomes_a_tag_and_part_of_the_name(toy_project: Callable[..., Path], empty_database: Path) -> None:
    project = toy_project({"mlflow.yml": SETTINGS, "parameters_night.yml": "night: 1\n"})
    shutil.copy(empty_database, project / "runs.db")
    execute(project)
    execute(project, night=7)
    # A pipeline that takes no night is of no night, unless one is named.
    assert [(run.data.tags.get("night"), run.info.run_name) for run in runs_of(project)] == [
        (None, "toy"),
        ("7", "toy night 7"),
    ]


def test_uncommitted_changes_are_kept_with_the_run(project: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments]
        return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (project / "data").mkdir(exist_ok=True)
    (project / "data" / "diary.md").write_text("so far\n", encoding="utf-8")
    git("add", "pyproject.toml", "conf", "data/diary.md")
    git("commit", "--message=first")
    (project / "data" / "diary.md").write_text("my secret\n", encoding="utf-8")
    (project / "data" / "divorce.md").touch()
    with (project / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    execute(project)
    (run,) = runs_of(project)
    assert run.data.tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert run.data.tags["mlflow.source.git.dirty"] == "true"
    folder = Path(client_of(project).download_artifacts(run.info.run_id, "git"))
    diff, untracked = ((folder / name).read_text(encoding="utf-8") for name in ("uncommitted.diff", "untracked.txt"))
    assert "+# a change" in diff
    assert "runs.db" in untracked
    # What people put into data is their own: a run says only that it is not what was committed.
    assert "secret" not in diff and "divorce" not in untracked
    assert run.data.tags["git.changed_data_files"] == "2"


def test_nothing_is_recorded_when_switched_off(toy_project: Callable[..., Path]) -> None:
    project = toy_project({"mlflow.yml": "enabled: false\ntracking_uri: sqlite:///runs.db\n"})
    execute(project)
    assert not (project / "runs.db").exists()


def test_a_mistake_in_the_settings_shows_before_anything_runs(toy_project: Callable[..., Path]) -> None:
    project = toy_project({"mlflow.yml": "enable: true\n"})
    with pytest.raises(ValueError, match=r"enable\n.*Extra inputs are not permitted"):
        execute(project)


def test_files_and_figures_are_stored_in_the_active_run(project: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from sleep_pipeline.tracking.active import set_active_run
    from sleep_pipeline.tracking.config import TrackingConfig

    (tmp_path / "card.md").write_text("model card", encoding="utf-8")
    config = TrackingConfig(tracking_uri=f"sqlite:///{project}/runs.db", artifact_location="files").resolved(project)
    run = TrackedRun.start(config, "toys", "by hand", {})
    set_active_run(run)
    try:
        tracking.log_artifact(tmp_path / "card.md", "model")
        tracking.log_artifact(project / "conf")
        tracking.log_figure(Figure(), "plots/loss.png")
        with pytest.raises(FileNotFoundError, match="no such file"):
            tracking.log_artifact(tmp_path / "absent.md")
    finally:
        set_active_run(None)
        run.finish("FINISHED")
    client = client_of(project)
    assert Path(client.download_artifacts(run.run_id, "model/card.md")).read_text(encoding="utf-8") == "model card"
    assert Path(client.download_artifacts(run.run_id, "plots/loss.png")).read_bytes().startswith(b"\x89PNG")
    assert (Path(client.download_artifacts(run.run_id, "conf")) / "base" / "mlflow.yml").is_file()


def test_files_and_figures_that_cannot_be_stored_cost_no_work(project: Path) -> None:
    from matplotlib.figure import Figure

    from sleep_pipeline.tracking.active import set_active_run
    from sleep_pipeline.tracking.config import TrackingConfig

    made_elsewhere(project)
    run = TrackedRun.start(TrackingConfig(tracking_uri="sqlite:///runs.db").resolved(project), "toys", "by hand", {})
    set_active_run(run)
    try:
        tracking.log_artifact(project / "conf")
        tracking.log_figure(Figure(), "plots/loss.png")
    finally:
        set_active_run(None)
        run.finish("FINISHED")


def test_without_a_run_everything_goes_nowhere(tmp_path: Path) -> None:
    assert isinstance(tracking.active_sink(), NullSink)
    tracking.active_sink().log_metrics({"loss": 1.0}, step=0)
    tracking.log_artifact(tmp_path / "absent.md")
    assert tracking.active_run() is None


@pytest.mark.slow
def test_a_process_that_ends_in_the_middle_leaves_a_killed_run_with_its_metrics(project: Path) -> None:
    script = f"""
from pathlib import Path
from sleep_pipeline.tracking.config import TrackingConfig
from sleep_pipeline.tracking.run import TrackedRun
config = TrackingConfig(tracking_uri="sqlite:///runs.db").resolved(Path({str(project)!r}))
TrackedRun.start(config, "toys", "cut short", {{}}).sink.log_metrics({{"loss": 1.5}}, 0)
raise KeyboardInterrupt
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in result.stderr
    (run,) = runs_of(project)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 1.5})
