"""The project's environment variables are set in one place and never over the user's own."""

from pathlib import Path

import pytest

from sleep_pipeline.environment import DEFAULTS, TELEMETRY_SWITCHES, apply_defaults


def test_everything_unset_gets_its_default() -> None:
    environ: dict[str, str] = {}
    apply_defaults(environ)
    assert environ == DEFAULTS


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
