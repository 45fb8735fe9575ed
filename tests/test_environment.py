"""The project's environment variables are set in one place and never over the user's own."""

import tomllib
from pathlib import Path

import pytest

from sleep_pipeline.environment import DEFAULTS, QUIET, TELEMETRY_SWITCHES, apply_defaults


def test_everything_unset_gets_its_default() -> None:
    environ: dict[str, str] = {}
    apply_defaults(environ, watched=True)
    assert environ == DEFAULTS


def test_bars_of_libraries_are_off_where_nobody_watches() -> None:
    environ: dict[str, str] = {}
    apply_defaults(environ, watched=False)
    assert environ == DEFAULTS | QUIET
    from transformers.utils import logging

    assert not logging.is_progress_bar_enabled()  # the tests themselves write into no terminal


def test_what_the_user_set_stays() -> None:
    environ = {"MLFLOW_LOGGING_LEVEL": "DEBUG", "DO_NOT_TRACK": ""}
    apply_defaults(environ)
    assert (environ["MLFLOW_LOGGING_LEVEL"], environ["DO_NOT_TRACK"]) == ("DEBUG", "")


def test_every_telemetry_switch_has_a_default() -> None:
    assert set(TELEMETRY_SWITCHES) <= set(DEFAULTS)


@pytest.mark.parametrize("file", ["Makefile", ".ci/run"])
def test_no_second_place_sets_them(project_root: Path, file: str) -> None:
    text = (project_root / file).read_text(encoding="utf-8")
    assert [name for name in DEFAULTS if name in text] == []


def test_mlflow_believes_that_telemetry_is_off() -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_kedro_sends_nothing_outside_a_project_either(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kedro.framework.cli.cli import _init_plugins
    from kedro_telemetry.plugin import _check_for_telemetry_consent

    # As an installation would write it.
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = tmp_path / "sleep_pipeline-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: sleep-pipeline\nVersion: 0.1.0\n")
    points = [
        line
        for group, named in project.get("entry-points", {}).items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in named.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(points) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    _init_plugins()
    assert _check_for_telemetry_consent(tmp_path) is False
