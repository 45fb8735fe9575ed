import pytest

from sleep_pipeline.memories.lines import Line
from sleep_pipeline.memories.passages import read_passages
from sleep_pipeline.memories.records import Content


def passages(text: str, markdown: bool = False, cut: str = "section", max_bytes: int = 1000) -> list[tuple[int, str]]:
    lines = [Line(number, line) for number, line in enumerate(text.split("\n"), start=1)]
    found = read_passages(lines, markdown, cut, max_bytes)  # type: ignore[arg-type]
    return [(item.line, item.content.text or "") for item in found if item.content]


MARKDOWN = "Before.\n\n# One\n\n## Deeper\nSaid.\n\nMore.\n# Two\nEnd."


def test_a_section_keeps_the_headings_above_it() -> None:
    assert passages(MARKDOWN, markdown=True) == [
        (1, "Before."),
        (5, "# One\n## Deeper\nSaid.\n\nMore."),
        (9, "# Two\nEnd."),
    ]


def test_a_paragraph_keeps_the_headings_above_it() -> None:
    assert passages(MARKDOWN, markdown=True, cut="paragraph") == [
        (1, "Before."),
        (5, "# One\n## Deeper\nSaid."),
        (8, "# One\n## Deeper\nMore."),
        (9, "# Two\nEnd."),
    ]


def test_headings_can_be_left_out() -> None:
    lines = [Line(number, line) for number, line in enumerate(MARKDOWN.split("\n"), start=1)]
    found = list(read_passages(lines, True, "section", 1000, headings=False))
    assert [(item.line, item.content.text) for item in found if item.content] == [
        (1, "Before."),
        (5, "Said.\n\nMore."),
        (9, "End."),
    ]


def test_a_file_can_be_one_passage() -> None:
    assert passages(MARKDOWN, markdown=True, cut="file") == [(1, MARKDOWN)]


def test_a_heading_in_code_cuts_nothing() -> None:
    code = "# One\n```\n# not this\n~~~\n```\nEnd."
    assert passages(code, markdown=True) == [(1, code)]


@pytest.mark.parametrize("between", ["\n\n\n", "\n---\n", "\n* * *\n"])
def test_rules_and_pairs_of_empty_lines_cut_a_text(between: str) -> None:
    assert [text for _, text in passages(f"One.\n\nStill one.{between}Two.")] == ["One.\n\nStill one.", "Two."]


def test_a_text_too_long_for_a_passage_is_cut_at_a_line() -> None:
    lines = [f"Line number {number} of the text." for number in range(100)]
    found = passages("\n".join(lines), max_bytes=200)
    assert "\n".join(text for _, text in found) == "\n".join(lines)
    assert max(len(text) for _, text in found) <= 200
    assert [line for line, _ in found][:2] == [1, 8]


@pytest.mark.parametrize("markdown", [True, False])
def test_a_line_that_cannot_be_read_costs_its_passage_nothing_else(markdown: bool) -> None:
    lines = [Line(1, "Monday."), Line(2, "caf\ufffd", "no UTF-8"), Line(3, "Tuesday."), Line(4, "\ufffd", "no UTF-8")]
    found = list(read_passages(lines, markdown, "section", 1000))
    assert [(item.line, item.reason) for item in found] == [(2, "no UTF-8"), (4, "no UTF-8"), (1, "")]
    assert found[-1].content == Content("text", text="Monday.\nTuesday.")


def test_what_stands_below_a_heading_that_cannot_be_read_is_kept() -> None:
    lines = [Line(1, "# One"), Line(2, "## T\ufffd", "no UTF-8"), Line(3, "Said.")]
    found = list(read_passages(lines, True, "section", 1000))
    assert [(item.line, item.reason) for item in found] == [(2, "no UTF-8"), (3, "")]
    assert found[-1].content == Content("text", text="# One\nSaid.")
