"""The `benchmark` pipeline on a made-up file in CLINC's format, and the grid that goes on where it was cut."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sleep_pipeline.baselines.methods import METHODS
from sleep_pipeline.baselines.settings import BenchmarkSettings
from sleep_pipeline.evaluation.tasks import TaskError
from sleep_pipeline.pipelines.benchmark import create_pipeline
from sleep_pipeline.pipelines.benchmark.nodes import load_stream

INTENTS = {"pay_bill": "money", "play_song": "music", "book_flight": "plane", "set_alarm": "clock"}
SMALL = {"method": "inca", "tasks": 2, "classes": 2, "threads": 1}
INSIDE = "data/08_reporting/benchmark/clinc150/inca/seed_0"


def published(folder: Path) -> Path:
    """Four intents of six examples and three questions each, and a row without a text."""

    def rows(count: int) -> list[list[str]]:
        return [[f"{word} {n} please", intent] for intent, word in INTENTS.items() for n in range(count)]

    outside = [[f"why {n}", "oos"] for n in range(6)]
    splits = {"train": [*rows(6), ["", "pay_bill"]], "val": rows(1), "test": rows(3), "oos_test": outside}
    folder.mkdir(parents=True)
    (folder / "data_full.json").write_text(json.dumps(splits), encoding="utf-8")
    return folder


def no_model(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a model was loaded")


@pytest.fixture
def run(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that runs the pipeline in a project of its own, without MLflow, and returns the project's folder."""
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    project = tmp_path / "project"
    shutil.copytree(project_root / "conf", project / "conf", ignore=shutil.ignore_patterns("local"))
    shutil.copy(project_root / "pyproject.toml", project)
    (project / "src").mkdir()
    (project / "conf/local").mkdir()
    (project / "conf/local/mlflow.yml").write_text("enabled: false\n", encoding="utf-8")
    published(project / "data/01_raw/clinc150")
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"])
    monkeypatch.setattr("kedro.framework.project.PACKAGE_NAME", None)
    monkeypatch.chdir(project)

    def with_settings(**settings: Any) -> Path:
        bootstrap_project(project)
        with KedroSession.create(project, runtime_params={"benchmark": SMALL | settings}) as session:
            session.run(pipeline_names=["benchmark"])
        return project

    return with_settings


def test_the_file_of_settings_says_what_the_defaults_are(project_root: Path) -> None:
    from kedro.config import OmegaConfigLoader

    from sleep_pipeline.settings import CONFIG_LOADER_ARGS

    loader = OmegaConfigLoader(str(project_root / "conf"), env="base", **CONFIG_LOADER_ARGS)
    assert BenchmarkSettings.model_validate(loader["parameters"]["benchmark"]) == BenchmarkSettings()


def test_a_run_takes_no_lock_of_a_life() -> None:
    assert not [node.name for node in create_pipeline().nodes if "night" in node.tags]


def test_the_precision_of_a_run_is_that_of_all_training() -> None:
    settings = BenchmarkSettings(precision="fp32").of_method
    assert settings.seeding.optimizer.precision == settings.tuning.optimizer.precision == "fp32"
    assert BenchmarkSettings().of_method == BenchmarkSettings().settings


def test_a_variant_may_look_like_a_number() -> None:
    assert BenchmarkSettings.model_validate({"variant": 0.1, "folder": 2024}).key == "clinc150/sleep-0.1/seed_0"


def test_bad_rows_stand_in_quarantine_with_file_line_and_reason(tmp_path: Path) -> None:
    published(tmp_path / "clinc150")
    stream, quarantined = load_stream(BenchmarkSettings(**SMALL), tmp_path)
    (row,) = quarantined["clinc150/inca/seed_0"].itertuples(index=False)
    assert (row.file, row.line) == ("data_full.json/train", 25)
    assert "the text is empty" in row.reason
    assert [len(task.train) for task in stream.tasks] == [12, 12]


def test_a_run_can_be_asked_less(tmp_path: Path) -> None:
    published(tmp_path / "clinc150")
    stream, _ = load_stream(BenchmarkSettings(**SMALL, test_rows_per_class=1), tmp_path)
    assert [len(task.test) for task in stream.tasks] == [2, 2]
    assert len(stream.out_of_scope) == 2


def test_a_missing_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"there is no folder .*elsewhere; get data_full\.json"):
        load_stream(BenchmarkSettings(folder="elsewhere"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"folder": "elsewhere"}, "there is no folder"),
        ({"method": "nap"}, "there is no method 'nap'; choose one of icl, inca"),
        ({"task": "clinc"}, "there is no task 'clinc'; choose one of banking77, clinc150"),
        ({"settings": {"topk": 3}}, "topk"),
        ({"tasks": 9}, "9 tasks of 2 need 18"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr("sleep_pipeline.night_model.open_base", no_model)
    with pytest.raises(Exception, match=told):
        run(**settings)


@pytest.mark.slow
def test_a_run_leaves_its_result_the_matrix_and_a_figure_beside_those_of_others(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    other = tmp_path / "project" / INSIDE.replace("seed_0", "seed_1") / "result.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}", encoding="utf-8")
    project = run(test_rows_per_class=2, settings={"top_k": 2})
    result = json.loads((project / INSIDE / "result.json").read_text(encoding="utf-8"))
    assert result["figures"]["final_accuracy"]["samples"] == 8
    assert result["settings"]["settings"]["top_k"] == 2
    assert (result["data"]["test_rows"], result["data"]["out_of_scope_rows"]) == (8, 4)
    assert result["model"] == "embedded" and len(result["weights_digest"]) == 64
    assert {"git_commit", "software", "finished"} <= result.keys()
    assert {label: len(marks) for label, marks in result["answers"]["by_likelihood"].items()} == {
        intent.replace("_", " "): 2 for intent in INTENTS
    }
    matrix = pd.read_parquet(project / INSIDE / "matrix.parquet")
    assert list(zip(matrix["task_after"], matrix["task_asked"], strict=True)) == [(1, 1), (2, 1), (2, 2)]
    last = matrix[matrix["task_after"] == 2]["accuracy"]
    assert last.mean() == pytest.approx(result["figures"]["final_accuracy"]["value"])
    assert (project / INSIDE / "accuracy.png").stat().st_size > 0
    assert len(pd.read_parquet(project / INSIDE.replace("08_reporting", "02_intermediate") / "quarantine.parquet")) == 1
    metrics = json.loads((project / INSIDE / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["final_accuracy"] == result["figures"]["final_accuracy"]["value"]
    assert other.read_text(encoding="utf-8") == "{}"
    assert not (project / "data/06_models").exists()


@pytest.mark.slow
def test_the_real_command_records_what_can_be_compared(project_root: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    project = tmp_path / "project"
    for name in ("src", "conf"):
        shutil.copytree(project_root / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    (project / "conf/local").mkdir()
    shutil.copy(project_root / "pyproject.toml", project)
    published(project / "data/01_raw/clinc150")
    parameters = ",".join(f"benchmark.{name}={value}" for name, value in SMALL.items())
    result = subprocess.run(
        [sys.executable, "-m", "sleep_pipeline", "run", "--pipeline=benchmark", f"--params={parameters}"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("benchmark")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    names = {"final_accuracy", "final_accuracy_freely", "stored_bytes", "seconds", "tokens", "out_of_scope_auroc"}
    lost = {"forgetting", "forgetting_since_learned", "backward_transfer", "accuracy_over_time"}
    assert {f"benchmark/{name}" for name in names | lost} <= run.data.metrics.keys()
    assert [run.data.tags[name] for name in ("task", "method", "seed")] == ["clinc150", "inca", "0"]
    seen = client.get_metric_history(run.info.run_id, "benchmark/accuracy_seen")
    assert [point.step for point in seen] == [1, 2]


@pytest.fixture(scope="module")
def benchmark(project_root: Path) -> Any:
    """The script `benchmarks/class_incremental.py` as a module."""
    path = project_root / "benchmarks" / "class_incremental.py"
    spec = importlib.util.spec_from_file_location("class_incremental", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As for a script, what lies beside it can be imported.
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def grid(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function that runs the grid on made-up classes and returns which runs it lived through."""
    monkeypatch.chdir(tmp_path)
    whole = benchmark.live

    def command(*arguments: str, cut: bool = False, quick: bool = True) -> list[str]:
        lived: list[str] = []

        def live(settings: Any, stream: Any, name: str, *rest: Any) -> Any:
            if cut and lived:
                raise KeyboardInterrupt
            lived.append(name)
            return whole(settings, stream, name, *rest, say=False)

        monkeypatch.setattr(benchmark, "live", live)
        begin = ["class_incremental.py", *(["--quick"] if quick else []), "--threads=1", "--json=found.json"]
        monkeypatch.setattr("sys.argv", [*begin, *arguments])
        if cut:
            with pytest.raises(KeyboardInterrupt):
                benchmark.main()
        else:
            benchmark.main()
        return lived

    return command


@pytest.mark.slow
def test_a_grid_that_was_cut_goes_on_without_doing_again_what_is_done(grid: Callable[..., list[str]]) -> None:
    assert grid("--methods=icl,inca", cut=True) == ["icl"]
    assert [run["name"] for run in json.loads(Path("found.json").read_text())["runs"]] == ["icl"]
    assert grid("--methods=icl,inca") == ["inca"]
    assert grid("--methods=icl,inca") == []
    assert grid("--methods=icl,inca", "--set", '{"settings": {"top_k": 1}}') == ["icl", "inca"]


@pytest.mark.slow
def test_a_method_s_figures_speak_of_its_latest_settings(grid: Callable[..., list[str]]) -> None:
    grid("--methods=inca")
    first = json.loads(Path("found.json").read_text())
    grid("--methods=inca", "--set", '{"settings": {"top_k": 1}}')
    record = json.loads(Path("found.json").read_text())
    assert len(record["runs"]) == 2
    assert record["protocol"]["settings"]["inca"]["settings"]["top_k"] == 1
    assert record["protocol"]["seeds"] == {"inca": [0]}
    grid("--methods=inca")
    again = json.loads(Path("found.json").read_text())
    assert again["figures"] == first["figures"]
    assert {"value", "unit", "interval", "interval_of", "seeds"} == again["figures"]["inca.final_accuracy"].keys()


@pytest.mark.slow
def test_variants_of_a_method_stand_side_by_side(
    grid: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    grid("--methods=inca")
    assert grid("--methods=inca", "--variant=few", "--set", '{"settings": {"top_k": 1}}') == ["inca:few"]
    capsys.readouterr()
    grid("--table", "--figure=found.png", quick=False)
    head, rule, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| inca", "| inca:few"]
    assert {row.count("|") for row in (head, rule, *rows)} == {12}
    assert Path("found.png").stat().st_size > 0


@pytest.mark.slow
def test_a_file_takes_runs_of_one_protocol(grid: Callable[..., list[str]]) -> None:
    grid("--methods=inca")
    with pytest.raises(SystemExit, match="test_rows_per_class=None, not 1: give a file of its own"):
        grid("--methods=inca", "--set", '{"test_rows_per_class": 1}')


def test_figures_state_the_spread_over_seeds_and_what_it_is_of(benchmark: Any) -> None:
    def run(seed: int, marks: str, forgetting: float) -> dict[str, Any]:
        values = {"final_accuracy": {"value": marks.count("1") / len(marks)}, "forgetting": {"value": forgetting}}
        return {
            "name": "sft",
            "seed": seed,
            "settings": {"seed": seed},
            "data": {"sha256": str(seed)},
            "model": "embedded",
            "weights_digest": "",
            "figures": values,
            "answers": {"by_likelihood": {"a": marks}},
        }

    found = benchmark.figures([run(0, "1100", 0.1), run(1, "1110", 0.3)])
    assert found["sft.final_accuracy"]["value"] == 0.625
    low, high = found["sft.final_accuracy"]["interval"]
    assert low < 0.5 and high > 0.75 and "bootstrap" in found["sft.final_accuracy"]["interval_of"]
    assert found["sft.forgetting"]["interval"] == [0.1, 0.3]
    assert found["sft.forgetting"]["interval_of"] == "least and greatest of the seeds"


def test_the_grid_is_checked_before_it_begins(
    grid: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, reason in (
        (["--methods=inca,nap"], "there is no method 'nap'"),
        (["--set", '{"settings": {"topk": 1}}'], "topk"),
        (["--set", "[1]"], "no JSON object"),
        (["--threads=0"], "greater than 0"),
        (["--folder=nowhere"], "there is no folder"),
        (["--set", '{"folder": "nowhere"}'], "there is no folder"),
    ):
        with pytest.raises(SystemExit):
            grid(*wrong)
        assert reason in capsys.readouterr().err
    assert not Path("found.json").exists()


@pytest.mark.slow
def test_a_model_that_is_not_there_ends_the_grid_with_the_remedy(grid: Callable[..., list[str]]) -> None:
    with pytest.raises(SystemExit, match=r"there is no folder \./nowhere"):
        grid("--methods=inca", "--model=./nowhere")


def test_all_methods_are_in_the_grid_unless_some_are_named(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["class_incremental.py"])
    grid = benchmark.planned(*benchmark.parsed())
    assert [one.method for one in grid if one.seed == 2] == list(METHODS)
    assert [one.seed for one in grid[:: len(METHODS)]] == [0, 1, 2], "a cut grid has whole seeds"
