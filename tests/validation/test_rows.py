import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sleep_pipeline.memories.reading import read_folder
from sleep_pipeline.memories.records import Content, Memory, memories_from_frame, memories_to_frame
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.validation.catalog import FrameValidator, metrics_frame
from sleep_pipeline.validation.page import render_page
from sleep_pipeline.validation.rows import REASON, FrameError, TooManyFailures, validate_rows
from sleep_pipeline.validation.suites import SUITES


def memory(number: int, **changes: Any) -> Memory:
    contents = [
        Content("text", text=f"Text {number}\n of two lines."),
        Content("chat", messages=({"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "Yes."})),
        Content("qa", question=f"{number}?", answer="Yes."),
        Content("label", text=f"example {number}", label="good"),
    ]
    content = contents[number % 4]
    digest = content.digest()
    said = (content.kind, content.text, content.messages, content.question, content.answer, content.label)
    made = Memory(digest[:16], *said, "memories/a.jsonl", number + 1, "2026-01-01T00:00:00Z", digest)
    return Memory(**{**made.__dict__, **changes})


def samples(**changes: list[Any]) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {
        "context": [0, 1, 2],
        "kind": ["questions"] * 3,
        "question": ["Who?", "", "When?"],
        "answer": ["Elno.", "Drask.", "At noon."],
        "agreement": [1.0, 0.5, 0.0],
    }
    return pd.DataFrame(columns | changes)


def test_good_memories_of_every_kind_pass() -> None:
    checked = validate_rows(memories_to_frame(memory(number) for number in range(8)), "memories")
    assert checked.success_share == 1 and len(checked.bad) == 0
    assert memories_from_frame(checked.good) == [memory(number) for number in range(8)]


def test_what_was_read_from_a_folder_passes(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One\nSaid.\n# Two\nSaid, too.", encoding="utf-8")
    frame = memories_to_frame(read_folder(tmp_path, CollectSettings()).memories)
    assert len(frame) == 2 and validate_rows(frame, "memories").success_share == 1


BAD: list[tuple[int, dict[str, Any], str]] = [
    (0, {"text": " \n"}, '"text" is empty'),
    (4, {"text": None}, '"text" is missing'),
    (1, {"messages": ({"role": "user", "content": "?"},)}, '"messages" holds no turn of the assistant'),
    (2, {"question": None}, '"question" is missing'),
    (6, {"answer": ""}, '"answer" is empty'),
    (3, {"label": None}, '"label" is missing'),
    (8, {"kind": "poem"}, '"kind" is none of text, chat, qa, label'),
    (12, {"digest": "abc"}, '"digest" is not a SHA-256'),
    (16, {"time": "yesterday"}, '"time" is not a time like'),
    (20, {"line": 0}, '"line" is not at least 1'),
]


def test_each_bad_memory_goes_to_quarantine_with_its_reason_and_the_rest_goes_on() -> None:
    bad = [memory(number, **changes) for number, changes, _ in BAD]
    checked = validate_rows(memories_to_frame([memory(40), *bad, memory(41)]), "memories")
    assert list(checked.good["id"]) == [memory(40).id, memory(41).id]
    assert list(checked.bad["line"]) == [item.line for item in bad]
    told = list(zip(checked.bad[REASON], [reason for _, _, reason in BAD], strict=True))
    assert [pair for pair in told if not pair[0].startswith(pair[1]) or '; "' in pair[0]] == []
    assert checked.success_share == pytest.approx(2 / 12)


def test_two_rows_of_the_same_id_both_fail() -> None:
    checked = validate_rows(memories_to_frame([memory(0), memory(1), memory(0)]), "memories")
    assert list(checked.good["id"]) == [memory(1).id] and len(checked.bad) == 2


def test_a_row_with_several_faults_names_them_all() -> None:
    frame = samples(answer=["", "Drask.", "At noon."], agreement=[1.5, 0.5, 0.0])
    reasons = validate_rows(frame, "teacher_samples").bad[REASON].iloc[0].split("; ")
    assert [reason for reason in reasons if reason.startswith('"')] == [
        '"answer" is empty',
        '"agreement" is not in [0, 1]',
    ]


def test_an_agreement_that_is_no_share_fails() -> None:
    wrong = [math.nan, math.inf, -0.1, "much", None]
    frame = pd.concat([samples(agreement=[1.0, value, 0.0]) for value in wrong], ignore_index=True)
    checked = validate_rows(frame, "teacher_samples")
    assert list(checked.bad.index) == [1, 4, 7, 10, 13]
    assert all(reason.startswith('"agreement" is') for reason in checked.bad[REASON])


def test_a_value_of_another_type_is_called_that_and_no_more() -> None:
    checked = validate_rows(samples(answer=["Elno.", 17, "At noon."]), "teacher_samples")
    assert list(checked.bad[REASON]) == ['"answer" is no text; correct it or delete the row']


def test_the_rows_keep_their_index_types_and_other_columns() -> None:
    frame = samples(extra=["x", "y", "z"]).set_index(pd.Index([7, 7, 9]))
    frame.loc[9, "agreement"] = 2.0
    checked = validate_rows(frame, "teacher_samples")
    pd.testing.assert_frame_equal(checked.good, frame.iloc[:2])
    pd.testing.assert_frame_equal(checked.bad.drop(columns=REASON), frame.iloc[2:])


def test_a_dream_needs_no_score_and_a_score_must_be_finite() -> None:
    dreams = pd.DataFrame({"id": ["a", "b", "c"], "text": ["One.", "Two.", " "]})
    assert list(validate_rows(dreams, "dreams").bad["id"]) == ["c"]
    scored = dreams.assign(reward=[None, math.inf, 1.0])
    assert list(validate_rows(scored, "dreams").bad["id"]) == ["b", "c"]


def test_shares_lie_between_zero_and_one_and_every_metric_is_finite() -> None:
    metrics = {"recall": {"share": 1.2, "loss": 3.5}, "retention": 0.9, "perplexity": math.inf, "missing": None}
    checked = validate_rows(metrics_frame(metrics), "metrics")
    assert list(checked.good["name"]) == ["recall.loss", "retention"]
    assert list(checked.bad["name"]) == ["recall.share", "perplexity", "missing"]


@pytest.mark.parametrize("name", SUITES)
def test_a_table_without_rows_passes(name: str) -> None:
    frame = pd.DataFrame(columns=list(SUITES[name].columns))
    assert validate_rows(frame, name, 0.0).success_share == 1


def test_a_missing_column_is_an_error_that_names_it() -> None:
    with pytest.raises(FrameError, match="teacher_samples lacks the columns answer, agreement; it has context"):
        validate_rows(samples().drop(columns=["answer", "agreement"]), "teacher_samples")


def test_an_unknown_suite_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(KeyError, match="use one of memories, teacher_samples"):
        validate_rows(samples(), "dream")


def test_too_many_failures_stop_the_night_with_counts_and_places() -> None:
    frame = memories_to_frame([memory(0, text=""), memory(4, text=""), memory(1)])
    assert len(validate_rows(frame, "memories", max_bad_share=0.7).bad) == 2
    with pytest.raises(TooManyFailures, match=r'2 of 3 rows failed.*memories/a.jsonl:1: "text" is empty.*jsonl:5: '):
        validate_rows(frame, "memories", max_bad_share=0.5)


@pytest.mark.slow
def test_the_validator_gives_back_what_passes_and_refuses_the_rest() -> None:
    frame = samples()
    assert FrameValidator("teacher_samples").validate(frame) is frame
    with pytest.raises(TooManyFailures):
        FrameValidator("teacher_samples").validate(samples(agreement=[9, 0, 0]))
    with pytest.raises(TypeError, match="list is no table"):
        FrameValidator("teacher_samples").validate([1])
    with pytest.raises(ValueError, match="max_bad_share=7"):
        FrameValidator("teacher_samples", max_bad_share=7)


def test_kedro_refuses_to_save_a_bad_table(tmp_path: Path) -> None:
    from kedro.io import DataCatalog
    from kedro.validation.exceptions import DataValidationError

    path = tmp_path / "samples.parquet"
    entry = {
        "type": "pandas.ParquetDataset",
        "filepath": str(path),
        "validator": {
            "class": "sleep_pipeline.validation.catalog.FrameValidator",
            "on": ["save"],
            "options": {"suite": "teacher_samples"},
        },
    }
    catalog = DataCatalog.from_config({"samples": entry})
    with pytest.raises(DataValidationError, match="1 of 3 rows failed"):
        catalog.save("samples", samples(answer=["", "a", "b"]))
    assert not path.exists()
    catalog.save("samples", samples())
    assert len(catalog.load("samples")) == 3


def test_the_page_needs_no_network_and_says_what_failed() -> None:
    frame = memories_to_frame([memory(0, text=""), memory(1), memory(5, source="<b>a</b>.jsonl", digest="no")])
    page = render_page([validate_rows(frame, "memories"), validate_rows(samples(), "teacher_samples")], "Night 3")
    assert "http" not in page and "<script" not in page and "<link" not in page and "src=" not in page
    assert "&lt;b&gt;a&lt;/b&gt;.jsonl:6" in page and "<b>" not in page
    assert "<td>memories/a.jsonl:1</td>" in page and "33.3%" in page and "<title>Night 3</title>" in page


def test_the_page_says_how_many_bad_rows_it_leaves_out() -> None:
    frame = samples(agreement=[2.0, 3.0, 4.0])
    page = render_page([validate_rows(frame, "teacher_samples")], max_rows=1)
    assert "and 2 more" in page and page.count("<td>row ") == 1
