"""The command line: Kedro's commands under our name, the doctor, the user interface."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from sleep_pipeline import cli, doctor
from sleep_pipeline.doctor import Finding
from sleep_pipeline.environment import DEFAULTS

HEAVY = ("torch", "transformers", "mlflow", "great_expectations", "pandas", "matplotlib", "datasets", "trl")


def run_python(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # A user's shell has none of the variables that conftest.py has set in this process.
    environ = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_listing_the_pipelines_imports_nothing_heavy(project_root: Path) -> None:
    script = f"""
import sys
sys.argv = ["kedro", "registry", "list"]
from kedro.framework.cli import main
try:
    main()
finally:
    print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    result = run_python(["-c", script], project_root)
    assert result.returncode == 0, result.stderr
    assert "__default__" in result.stdout
    assert "HEAVY []" in result.stdout


@pytest.mark.slow
def test_kedro_commands_work_under_our_name_from_any_folder_of_the_project(project_root: Path) -> None:
    result = run_python(["-m", "sleep_pipeline", "registry", "list"], project_root / "conf" / "base")
    assert result.returncode == 0, result.stderr
    assert "__default__" in result.stdout


def test_outside_a_project_the_error_says_what_to_do(tmp_path: Path) -> None:
    result = run_python(["-m", "sleep_pipeline", "run"], tmp_path)
    assert result.returncode == 1
    assert f"{tmp_path} lies in no Kedro project: change into the folder" in result.stderr


@pytest.mark.parametrize("option", ["--pipeline=toy", "--pipelines=toy"])
def test_both_spellings_of_the_pipeline_option_run_it(
    toy_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    from kedro.framework.cli.cli import KedroCLI

    project = toy_project()
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit) as ended:
        KedroCLI(project).main(["run", option, "--params=toy.steps=2"])
    assert ended.value.code == 0


def test_an_unknown_pipeline_is_an_error(toy_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from kedro.framework.cli.cli import KedroCLI

    project = toy_project()
    monkeypatch.chdir(project)
    with pytest.raises(ValueError, match=r"Failed to find the pipeline named 'tou'(.|\n)*toy"):
        KedroCLI(project).main(["run", "--pipelines=tou"])


def invoke(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> tuple[int, str]:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli.cli, list(arguments))
    return result.exit_code, result.output


def test_the_doctor_ends_with_1_and_the_remedy_when_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, project_root: Path
) -> None:
    findings = [Finding("cores", "2"), Finding("torch", "not installed", "run `make setup`")]
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(findings))
    code, output = invoke(monkeypatch, project_root, "doctor")
    assert code == 1
    assert "not installed  <- run `make setup`" in output
    assert "1 of the things a night needs is missing" in output


def test_the_doctor_ends_with_0_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch, project_root: Path) -> None:
    monkeypatch.setattr(doctor, "examine", lambda project, tracking: iter([Finding("tracking", tracking)]))
    code, output = invoke(monkeypatch, project_root, "doctor", "--env=base")
    assert (code, output.split()) == (0, ["tracking", f"sqlite:///{project_root}/mlflow.db"])


@pytest.mark.parametrize("command", ["doctor", "ui", "plan", "lineage", "wake"])
def test_an_environment_that_does_not_exist_is_named_with_those_that_do(
    monkeypatch: pytest.MonkeyPatch, project_root: Path, command: str
) -> None:
    code, output = invoke(monkeypatch, project_root, command, "--env=bse")
    assert code == 2
    assert "has no environment 'bse'; choose one of base, gpu" in output


def test_the_doctor_says_when_tracking_is_off(
    toy_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda project, tracking: iter([Finding("tracking", tracking)]))
    assert invoke(monkeypatch, toy_project(), "doctor") == (0, f"{'tracking':<20} off\n")


def test_the_doctor_looks_at_everything_a_night_needs(project_root: Path) -> None:
    topics = {finding.topic for finding in doctor.examine(project_root, "sqlite:///x.db")}
    wanted = {
        *doctor.REQUIRED_PACKAGES,
        "cores",
        "memory",
        "device",
        "bf16",
        "embedded model",
        "tracking",
        "telemetry",
    }
    assert wanted <= topics


@pytest.mark.slow
def test_the_ui_starts_a_server_over_the_projects_database(monkeypatch: pytest.MonkeyPatch, project_root: Path) -> None:
    started: list[tuple[list[str], str]] = []

    def call(command: list[str], env: dict[str, str]) -> int:
        started.append((command, env["MLFLOW_BACKEND_STORE_URI"]))
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code, _ = invoke(monkeypatch, project_root / "conf", "ui", f"--port={port}", "--env=base")
    assert code == 0
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", "server", *address, "--workers", "1"]
    assert started == [(command, f"sqlite:///{project_root}/mlflow.db")], "an address may hold a password"


def test_the_ui_refuses_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, project_root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, output = invoke(monkeypatch, project_root, "ui", f"--port={port}")
    assert code == 1
    assert f"Port {port} of 127.0.0.1 is taken: choose another with --port" in output


def test_the_ui_points_to_a_server_that_runs_already(monkeypatch: pytest.MonkeyPatch, project_root: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    code, output = invoke(monkeypatch, project_root, "ui", "--env=base")
    assert code == 1
    assert "open http://127.0.0.1:5001 in a browser" in output


@pytest.mark.slow
def test_the_real_server_shows_the_runs(project_root: Path, tmp_path: Path) -> None:
    """Starts the command line that `ui` starts and asks it for its experiments."""
    import time
    import urllib.error
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = cli.server_command("127.0.0.1", port)
    store = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/runs.db"}
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **store}
    )
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    try:
        # However long a busy machine takes: pytest's own time limit ends a server that never answers.
        while True:
            try:
                with urllib.request.urlopen(url, timeout=60) as answer:
                    assert b'"name": "Default"' in answer.read()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert server.poll() is None, "the server ended"
                time.sleep(0.5)
    finally:
        server.terminate()
        server.wait()
