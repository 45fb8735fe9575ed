"""What is printed while a command works: for the people who run it."""

import logging
import logging.config
from pathlib import Path

import pytest
import yaml

from sleep_pipeline.console import WIDTH, ForPeople, Names, speak_to_people


def record(name: str, message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, args, None)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/x/site-packages/trl/a.py:3: FutureWarning: `old` goes.\n  warn(", False),
        ("/usr/lib/python3/dist-packages/a.py:3: DeprecationWarning: `old` goes.", False),
        ("/x/site-packages/trl/a.py:3: UserWarning: no learning rate. FutureWarning: is not mine", True),
        ("/x/src/sleep_pipeline/a.py:3: FutureWarning: ours", True),
    ],
)
def test_warnings_to_programmers_of_libraries_are_left_out(message: str, shown: bool) -> None:
    assert bool(ForPeople().filter(record("py.warnings", "%s", message))) is shown
    assert ForPeople().filter(record("sleep_pipeline.seeding", "%s", message)) is True


def test_a_node_is_told_by_its_name() -> None:
    whole = record("kedro.pipeline.node", "Running node: %s", "seed_node: seed([memories;params:seeding]) -> [model]")
    assert Names().format(whole) == "Running node: seed_node"
    assert whole.getMessage().endswith("-> [model]"), "other handlers see what it was"


def test_a_file_gets_one_line_for_a_long_message(project_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load((project_root / "conf/logging.yml").read_text(encoding="utf-8"))
    logger = logging.Logger("life")
    logger.addHandler(logging.config.DictConfigurator(settings).configure_handler(settings["handlers"]["rich"]))
    for _ in range(2):
        speak_to_people(logger)
    message = " ".join(["word"] * 24)
    logger.info(message)
    logger.handle(record("py.warnings", "/x/site-packages/trl/a.py:3: FutureWarning: `old` goes."))
    (line,) = capsys.readouterr().out.splitlines()
    assert message in line
    assert len(line) <= WIDTH
    assert "test_console" not in line
    logger.handle(record("kedro.pipeline.node", "Running node: %s", "seed_node: seed([memories]) -> [model]"))
    assert "seed_node" in (told := capsys.readouterr().out)
    assert "memories" not in told
    assert len(logger.handlers[0].filters) == 1
