import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from sleep_pipeline.seeding.settings import RefineSettings, SeedingSettings


@pytest.mark.parametrize(
    "values",
    [
        {"alfa": 0.5},
        {"optimizer": {"lr": 1e-3}},
        {"replay": {"rows": 3}},
        {"imitation": {"gama": 0.5}},
        {"teacher": {"topk": 3}},
    ],
)
def test_unknown_names_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SeedingSettings.model_validate(values)


def test_experts_that_nothing_rehearses_stand_still() -> None:
    assert SeedingSettings().plastic
    assert not SeedingSettings.model_validate({"replay": {"stored_rows": 0}}).plastic


def test_a_teacher_with_experts_must_stand_still() -> None:
    values: dict[str, Any] = {"teacher": {"experts": True}, "optimizer": {"earlier_rate": 0.5}}
    with pytest.raises(ValidationError, match=r"optimizer\.earlier_rate=0.5 has changed its experts: set earlier_rate"):
        SeedingSettings.model_validate(values)
    for name, allowed in (("teacher", {"experts": False}), ("optimizer", {"earlier_rate": 0.0})):
        assert SeedingSettings.model_validate({**values, name: allowed}).plastic == (name != "optimizer")


@pytest.mark.parametrize(
    "values",
    [
        {"lambda": 1.1},
        {"alpha": -0.1},
        {"divergence": "kl"},
        {"beta": 1.0},
        {"rows": 0},
        {"imitation": {"group": 1}},
        {"optimizer": {"precision": "fp16"}},
        {"optimizer": {"steps": 0}},
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SeedingSettings.model_validate(values)


def test_lambda_has_the_name_that_the_paper_gives_it_and_one_that_python_allows() -> None:
    assert SeedingSettings.model_validate({"lambda": 0.5}).on_policy == 0.5
    assert SeedingSettings(on_policy=0.5).on_policy == 0.5
    again = SeedingSettings(on_policy=0.25)
    assert SeedingSettings.model_validate(again.model_dump()) == again
    assert SeedingSettings.model_validate_json(again.model_dump_json(by_alias=True)) == again


@pytest.mark.parametrize(
    ("share", "rows", "group", "prompts"),
    [(0.0, 48, 4, 0), (0.125, 48, 4, 2), (0.5, 8, 2, 2), (1.0, 8, 4, 2), (0.04, 48, 4, 1), (0.3, 48, 4, 4)],
)
def test_the_on_policy_share_is_rounded_to_whole_groups(share: float, rows: int, group: int, prompts: int) -> None:
    values = {"rows": rows, "on_policy": share, "imitation": {"group": group}}
    assert SeedingSettings.model_validate(values).prompts == prompts


@pytest.mark.parametrize(
    ("lessons", "passes", "steps"),
    [(0, 6.0, 320), (853, 6.0, 320), (854, 6.0, 321), (8000, 6.0, 3000), (8000, 0.0, 320), (8001, 0.5, 320)],
)
def test_a_night_that_brings_much_takes_more_steps(lessons: int, passes: float, steps: int) -> None:
    settings = SeedingSettings.model_validate({"rows": 16, "optimizer": {"steps": 320, "passes": passes}})
    found = settings.for_night(lessons)
    assert found.optimizer.steps == steps
    assert found.for_night(lessons) == found, "also where a night goes on"
    assert found.model_copy(update={"optimizer": settings.optimizer}) == settings, "and nothing else changes"


def test_the_settings_can_be_read_without_torch() -> None:
    program = "import sys, sleep_pipeline.seeding.settings; sys.exit(bool({'torch', 'trl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_refining_takes_more_steps_for_many_lessons_by_passes_of_its_own() -> None:
    seeding = SeedingSettings.model_validate({"rows": 16, "optimizer": {"steps": 320, "passes": 4.0}})
    refining = RefineSettings(steps=200, passes=2.0)
    steps = [refining.seeding(seeding).for_night(lessons).optimizer.steps for lessons in (0, 1600, 1601, 3200)]
    assert steps == [200, 200, 201, 400]
    assert RefineSettings(steps=200, passes=0).seeding(seeding).for_night(10_000).optimizer.steps == 200


@pytest.mark.parametrize(("muon_rate", "wanted"), [(None, None), (0.01, pytest.approx(0.002))])
def test_refining_slows_muon_down_as_much_as_adamw(muon_rate: float | None, wanted: Any) -> None:
    seeding = SeedingSettings.model_validate({"optimizer": {"learning_rate": 5e-3, "muon_rate": muon_rate}})
    refining = RefineSettings(learning_rate=1e-3).seeding(seeding).optimizer
    assert (refining.learning_rate, refining.muon_rate) == (1e-3, wanted)
