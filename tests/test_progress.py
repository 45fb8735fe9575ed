"""Long work shows how far it is: as a bar where somebody watches, as a line now and then where nobody does."""

import logging
import sys

import pytest

import sleep_pipeline.progress as progress


def test_a_log_hears_of_long_work_now_and_then(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(0, 10_000, 25))  # every look at the clock is 25 s later than the one before
    monkeypatch.setattr("tqdm.std.time", lambda: next(times))
    with caplog.at_level(logging.INFO, "sleep_pipeline"):
        shown = progress.bar(title="training", total=40, initial=10, unit="step")
        shown.set_postfix(loss="0.5", refresh=False)
        for _ in range(30):
            shown.update()
        shown.close()
    lines = [record.getMessage() for record in caplog.records]
    assert 2 <= len(lines) <= 30 * 25 / progress.SECONDS + 1
    assert lines[0].startswith("training: 1")
    assert "of 40, 25.00s/step" in lines[0]
    assert "left, loss=0.5" in lines[0]
    assert lines[-1].startswith("training: 40 of 40")
    assert capsys.readouterr().err == ""


def test_the_end_is_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "sleep_pipeline"):
        shown = progress.bar(title="questions", total=1)
        shown.update()
        shown.close()
    told = [record.getMessage().split(",")[0] for record in caplog.records]
    assert told == ["questions: 0 of 1", "questions: 1 of 1"]


def test_nothing_is_said_of_what_is_short(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO, "sleep_pipeline"):
        assert list(progress.bar(range(3), "short")) == [0, 1, 2]
    assert caplog.records == []
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with caplog.at_level(logging.INFO, "sleep_pipeline"):
        assert list(progress.bar(range(3), "here", unit="batch")) == [0, 1, 2]
        assert list(progress.bar(range(3))) == [0, 1, 2]
    assert "here" in (seen := capsys.readouterr().err)
    assert "3/3" in seen
    assert caplog.records == []
