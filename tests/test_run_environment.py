import shlex
from collections.abc import Iterator

import pytest
from kedro.framework.cli.utils import _split_params

from sleep_pipeline.run_environment import environment_option, night_command, set_environment


@pytest.fixture(autouse=True)
def _given_nothing() -> Iterator[None]:
    yield
    set_environment(None)


def test_a_run_that_was_given_nothing_is_told_by_its_night_alone() -> None:
    assert night_command(3) == "kedro run --pipelines=sleep --params=night=3"
    assert environment_option() == ""


def test_a_command_has_the_environment_and_all_parameters_of_the_run() -> None:
    set_environment("mine", {"night": 2, "collect": {"at_most": 200}, "model": "models/a model"})
    told = night_command(9, "collect_memories_node")
    words = shlex.split(told)
    assert words[:3] == ["kedro", "run", "--pipelines=sleep"]
    assert words[4:] == ["--env=mine", "--from-nodes=collect_memories_node"]
    given = words[3].removeprefix("--params=")
    assert given.startswith("night=9,")
    assert _split_params(None, None, given) == {"night": 9, "collect": {"at_most": 200}, "model": "models/a model"}


def test_what_one_run_was_given_is_not_told_of_the_next() -> None:
    set_environment("mine", {"model": "other"})
    set_environment(None)
    assert night_command(1) == "kedro run --pipelines=sleep --params=night=1"
