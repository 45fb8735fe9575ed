"""The report is one file that loads nothing, runs nothing and shows every text as text."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_pipeline.evaluation.gate import Check, GateSettings, decide
from sleep_pipeline.evaluation.retention import Retention
from sleep_pipeline.reporting import DreamSample, Example, Memories, NightPoint, NightReport, render
from sleep_pipeline.reporting.charts import heat_map, percent
from sleep_pipeline.reporting.markup import Html, element, join

ATTACK = """<script>alert(1)</script><img src=x onerror="alert(2)">' " & </main></body> javascript:alert(3)"""
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements, texts and whether every element was closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def hostile(report: NightReport, text: str, changed: Callable[..., NightReport]) -> NightReport:
    """The report with `text` wherever a word of a memory, a model or a user can stand."""
    example = Example(text, text, text, text, 7)
    return changed(
        model=text,
        command=text,
        git_commit=text,
        time=text,
        environment={text: text},
        learned=[example] * 12,
        forgotten=[example],
        dreams=[DreamSample(text, text, 0.1, 1.0)],
        dreamer=text,
        memories=Memories(3, 1, {text: [text] * 2}, {text: 1}),
        phases={text: 1.0},
        levels=[[{"state": "active", "night": 7, "origin": text, "unlocks": 1}]],
    )


def test_the_report_is_a_well_formed_page_with_every_section(report: NightReport) -> None:
    page = Page(render(report))
    for heading in (
        "Night 7",
        "Why promoted",
        "Learned",
        "Forgotten",
        "What was kept",
        "Night after night",
        "Slots of the memory",
        "Dreams that helped",
        "Memories",
        "Time",
        "Do it again",
    ):
        assert heading in page.texts
    assert page.tags.count("svg") == 4


def test_the_dreamers_training_is_told_with_and_without_a_dream_that_helped(
    changed: Callable[..., NightReport],
) -> None:
    says = "2 rounds of ReST-EM, 1 dropped by the guard"
    for dreams in ([], [DreamSample("rewrite", "A dream.", 0.1, 1.0)]):
        page = Page(render(changed(dreamer=says, dreams=dreams)))
        assert "Dreams that helped" in page.texts and says in page.texts
    assert "Dreams that helped" not in Page(render(changed(dreams=[]))).texts


def test_texts_of_which_nothing_could_be_learned_are_named(report: NightReport) -> None:
    assert "Nothing could be learned of" not in Page(render(report)).texts
    told = replace(report, memories=replace(report.memories, unlearnable=("notes/a.md:3", "notes/b.md:1")))
    texts = Page(render(told)).texts
    assert "Nothing could be learned of" in texts and {"notes/a.md:3", "notes/b.md:1"} <= set(texts)


def test_what_was_left_out_is_named_with_its_place(report: NightReport) -> None:
    left_out = {"text is empty": [f"a.md:{n}" for n in range(1, 6)], "no JSON": ["b.jsonl:7"]}
    text = Page(render(replace(report, memories=Memories(quarantined=left_out)))).text
    assert "6 of the whole folder are left out" in text
    assert "text is empty 5 a.md:1, a.md:2, a.md:3 and 2 more no JSON 1 b.jsonl:7" in text


def test_a_folder_of_duplicates_does_not_flood_the_page(report: NightReport) -> None:
    left_out = {f"says again what a.md:{n} says": [f"b.md:{n}"] for n in range(1000)}
    html = render(replace(report, memories=Memories(quarantined=left_out)))
    assert html.index("b.md:7<") < html.index("192 more reasons") < html.index("b.md:8<")
    assert "800 more reasons stand in the night" in html and "b.md:200<" not in html


def test_a_long_answer_is_folded_but_whole(changed: Callable[..., NightReport]) -> None:
    long = "word " * 1000
    html = render(changed(learned=[Example("why?", long, "no", "yes", 7)], forgotten=[], dreams=[]))
    assert html.count('<details class="long">') == 1 and long in html


def test_a_percentage_on_a_tile_keeps_its_sign(report: NightReport) -> None:
    tiles = re.findall(r"<b>([^<]*%)</b>", render(report))
    assert tiles and all("%" not in tile.replace("\N{NO-BREAK SPACE}%", "") for tile in tiles)


def test_a_night_that_was_overtaken_is_told_in_words(report: NightReport) -> None:
    check = Check("champion", None, None, "as when the night began", False, "the champion is night 3 now")
    decision = replace(report.decision, promote=False, checks=(*report.decision.checks, check))
    row = "Grew from the model in use ✗ failed – – as when the night began the champion is night 3 now"
    assert row in Page(render(replace(report, decision=decision))).text


def test_nothing_is_loaded_and_nothing_runs(report: NightReport) -> None:
    html = render(report)
    page = Page(html)
    assert {"script", "link", "img", "iframe", "object", "embed"}.isdisjoint(page.tags)
    assert {"src", "href", "srcset"}.isdisjoint(name for name, _ in page.attributes)
    assert re.findall(r"https?:|//[a-z]|url\(|@import", html) == []


def test_a_memory_with_html_in_it_is_shown_and_not_obeyed(
    report: NightReport, changed: Callable[..., NightReport]
) -> None:
    plain, attacked = Page(render(hostile(report, "word", changed))), Page(render(hostile(report, ATTACK, changed)))
    assert attacked.tags == plain.tags
    assert [name for name, _ in attacked.attributes] == [name for name, _ in plain.attributes]
    assert attacked.text.count("<script>alert(1)</script>") == plain.text.count("word") > 20


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=40))
def test_whatever_is_written_the_page_has_the_same_elements(text: str) -> None:
    built = element("p", text, title=text)
    page = Page(element("main", built, join(text), Html("<br>")))
    assert page.tags == ["main", "p", "br"]
    assert [name for name, _ in page.attributes] == ["title"]


def test_control_characters_are_replaced() -> None:
    assert element("p", "a\x00b\x1b[31mc\td\n") == "<p>a\ufffdb\ufffd[31mc\td\n</p>"


def test_markup_is_built_from_text_and_attributes() -> None:
    built = element("td", "a<b", 3, None, Html("<br>"), class_="x y", data_key='"', hidden=True, lang=None, open=False)
    assert built == '<td class="x y" data-key="&quot;" hidden>a&lt;b3<br></td>'


def test_every_check_stands_with_value_interval_limit_and_reason(
    report: NightReport, changed: Callable[..., NightReport]
) -> None:
    decision = decide(
        {"forgetting_of_questions": {"value": 0.25, "low": 0.125, "high": 0.5, "samples": 9}}, GateSettings()
    )
    text = Page(render(changed(decision=decision))).text
    assert "Why rejected 5 of 5 checks failed." in text
    assert "The model in use is still night 6." in text
    row = "Earlier nights forgotten ✗ failed 0.250 0.125 to 0.500 below 0.05 The forgetting of earlier nights since"
    assert row in text


def test_the_heat_map_has_the_number_in_every_cell(changed: Callable[..., NightReport]) -> None:
    retention = Retention().append(2, [[1, 1, 0, 0]]).append(5, [[1, 0, 0, 0], [1]])
    html = render(changed(retention=retention))
    heat = html[html.index('class="heat"') :]
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", heat[: heat.index("</table>")])
    assert cells == ["after ↓ of →", "2", "5", "mean", "2", "50", "", "50", "5", "25", "100", "62"]


def life_of(nights: int) -> Retention:
    return Retention(tuple(tuple((1, int((i + j) % 3 == 0)) for j in range(i + 1)) for i in range(nights)))


@pytest.mark.parametrize(("nights", "shown"), [(36, [*range(1, 37)]), (40, [1, 2, 3, 4, 5, "…", *range(11, 41)])])
def test_of_a_long_life_the_heat_map_shows_the_first_nights_and_the_latest(nights: int, shown: list[int | str]) -> None:
    retention = life_of(nights)
    html = heat_map(retention)
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in html.split("<tr>")[1:]]
    names = [str(night) for night in shown]
    assert rows[0][1:-1] == names and [row[0] for row in rows[1:]] == names
    assert {len(row) for row in rows} == {len(names) + 2}
    means = retention.means()
    assert rows[-1][-2:] == [f"{100 * means[-1, -1]:.0f}", f"{100 * means[-1].mean():.0f}"], "over all nights"
    assert ("Nights 6 to 10 are left out" in html) == ("…" in names)


@pytest.mark.parametrize(("nights", "style"), [(20, "heat"), (21, "heat dense")])
def test_many_nights_get_small_cells_so_that_the_latest_are_not_cut_off(nights: int, style: str) -> None:
    assert f'<table class="{style}">' in heat_map(life_of(nights))


def test_a_year_of_nights_leaves_the_heat_map_small() -> None:
    assert len(heat_map(life_of(365))) < 250_000


def test_a_first_night_without_anything_optional_still_gives_a_page(report: NightReport) -> None:
    bare = NightReport(
        night=1,
        parent=0,
        time="2026-11-25",
        model="m",
        decision=decide({}, GateSettings()),
        retention=Retention(),
        command="kedro run",
    )
    text = Page(render(bare)).text
    assert "Grew from the base model" in text
    assert "No questions were asked." in text
    assert "Git commit unknown" in text


def test_curves_leave_gaps_where_nothing_was_measured(changed: Callable[..., NightReport]) -> None:
    points = [NightPoint(night, recall=None if night == 3 else 0.5) for night in range(1, 6)]
    html = render(changed(history=points))
    assert html.count('class="curve"') == 2
    assert html.count("<circle") == 4
    assert html.count("not measured") == 3


@pytest.mark.parametrize("values", [[0.0, 0.0], [-0.2, 0.1], [1e-9, 3.0], [5.0]])
def test_curves_stay_inside_their_frame(changed: Callable[..., NightReport], values: list[float]) -> None:
    points = [NightPoint(night, forgetting=value) for night, value in enumerate(values, start=1)]
    html = render(changed(history=points))
    centres = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([^"]+)" cy="([^"]+)"', html)]
    assert len(centres) == len(values)
    assert all(0 <= x <= 320 and 0 <= y <= 150 for x, y in centres)


def test_without_questions_of_its_own_a_night_claims_nothing_of_the_night_before(report: NightReport) -> None:
    own, none = Page(render(report)), Page(render(replace(report, night=report.night + 1)))
    assert "of tonight's 48 questions right without the context" in own.text
    assert "Recall gained in this night" in own.texts
    assert "of tonight's" not in none.text and "Recall gained in this night" not in none.texts
    assert "Nothing was asked about this night; the matrix is that of the nights before it." in none.texts


def test_the_dreams_that_helped_are_counted_though_few_are_shown(report: NightReport) -> None:
    dreams = [DreamSample("rewrite", f"dream {n}", 0.1, 1.0) for n in range(8)]
    text = Page(render(replace(report, dreams=dreams, dreams_helpful=14, dreams_dreamt=192))).text
    assert "14 of 192 dreams made a copy of the model better. The best 8 are shown." in text


@pytest.mark.slow
def test_the_model_in_use_is_named_where_it_is_not_the_parent(report: NightReport) -> None:
    rejected = replace(report, decision=decide({}, GateSettings()))
    assert "The model in use is still night 6." in Page(render(replace(rejected, in_use=6))).text
    assert "The model in use is night 1." in Page(render(replace(rejected, in_use=1))).text
    assert "The model in use is the base model." in Page(render(replace(rejected, in_use=0))).text


@pytest.mark.parametrize(
    ("share", "digits", "shown"),
    [(-0.0002, 1, "0.0 %"), (-0.002, 0, "0 %"), (-0.004, 1, "-0.4 %"), (0.945, 0, "94 %"), (None, 0, "–")],
)
def test_a_share_that_rounds_to_nothing_has_no_sign(share: float | None, digits: int, shown: str) -> None:
    assert percent(share, digits) == shown


def test_many_examples_are_folded_away(changed: Callable[..., NightReport]) -> None:
    examples = [Example(f"question {n}?", "t", "b", "a", 1) for n in range(50)]
    html = render(changed(learned=examples))
    assert "42 more examples" in html
    assert html.index("question 7?") < html.index("42 more examples") < html.index("question 8?")


def test_slots_say_in_words_what_their_colour_says(report: NightReport) -> None:
    html = render(report)
    assert 'aria-label="slot 2: active, night 7, from context"' in html
    assert 'aria-label="slot 0: active, night 4, from level 1"' in html
    assert "Level 1: 3 of 8 slots in use" in html


def test_a_measure_whose_answers_are_all_alike_has_no_interval_of_no_width(report: NightReport) -> None:
    perfect = Retention().append(1, [[1] * 9]).append(2, [[1] * 9, [1] * 9])
    rows = Page(render(replace(report, retention=perfect))).text
    assert "100.0 % to 100.0 %" not in rows
    assert "0.0 % to 0.0 %" not in rows
