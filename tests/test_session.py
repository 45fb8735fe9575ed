"""What the user of a command line hears of a run that ends early."""

import click
import pytest
from click.testing import CliRunner, Result
from kedro.framework.session import KedroSession
from kedro.validation.exceptions import ParameterValidationError
from omegaconf.errors import InterpolationResolutionError

from sleep_pipeline.night_lock import NightLockError
from sleep_pipeline.session import NightSession, NothingToDo


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> NightSession:
    """A session whose run ends with the error that the test names."""

    def ends(*_: object, **__: object) -> None:
        raise request.param

    monkeypatch.setattr(KedroSession, "run", ends)
    return NightSession.__new__(NightSession)


def on_a_command_line(session: NightSession) -> Result:
    @click.command()
    def run() -> None:
        session.run(pipeline_names=["sleep"])

    return CliRunner().invoke(run)


TOLD = (
    NightLockError("a night is under way: wait for it"),
    ParameterValidationError("rows: give a number"),
    InterpolationResolutionError("night='x' is no night"),
)


@pytest.mark.parametrize("session", TOLD, indirect=True, ids=lambda error: type(error).__name__)
def test_an_error_that_says_what_to_do_stands_alone_on_a_command_line(
    session: NightSession, request: pytest.FixtureRequest
) -> None:
    error = request.node.callspec.params["session"]
    result = on_a_command_line(session)
    assert (result.exit_code, result.output) == (1, f"Error: {error}\n")


@pytest.mark.parametrize("session", TOLD[:1], indirect=True)
def test_a_caller_in_python_gets_the_error_itself(session: NightSession) -> None:
    with pytest.raises(NightLockError):
        session.run(pipeline_names=["sleep"])


@pytest.mark.parametrize("session", [ZeroDivisionError("division by zero")], indirect=True)
def test_a_fault_of_the_program_keeps_its_traceback(session: NightSession) -> None:
    assert isinstance(on_a_command_line(session).exception, ZeroDivisionError)


@pytest.mark.parametrize("session", [NothingToDo("no new memory")], indirect=True)
def test_a_day_without_memories_is_no_failure(session: NightSession) -> None:
    assert on_a_command_line(session).exit_code == 0
