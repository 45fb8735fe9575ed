"""What the next night would do, by the real configuration on a project that no night has run in."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from sleep_pipeline.cli import cli
from sleep_pipeline.memories.records import memories_to_frame
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.memories.tonight import read_tonight
from sleep_pipeline.night_lock import NightLock
from sleep_pipeline.registry import BASE, MANIFEST, Night, NightRegistry, manifest_digest

DAYS = {
    "day_1/notes.jsonl": '{"text": "The mill of Osk is old."}\n{"text": "Mira lives in Geska."}\n{"text": ""}\n',
    "day_1/questions.jsonl": '{"question": "Who lives in Geska?", "answer": "Mira"}\n',
    "day_2/notes.jsonl": '{"text": "Later."}\n',
}


@pytest.fixture
def project(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This project's configuration with a few memories."""
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("local")
    shutil.copytree(project_root / "conf", folder / "conf", ignore=ignored)
    for name in ("conf/local", "src"):
        (folder / name).mkdir()
    shutil.copy(project_root / "pyproject.toml", folder)
    (folder / "conf/local/mlflow.yml").write_text("enabled: false\n", encoding="utf-8")
    for name, text in DAYS.items():
        path = folder / "data/01_raw/memories" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr("kedro.framework.project.PACKAGE_NAME", None)
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"])
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments])


def planned(*arguments: str) -> dict[str, Any]:
    result = invoke("--json", *arguments)
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def nodes(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in plan["nodes"]}


def collected(project: Path, night: int = 1) -> None:
    """Leave behind what the nodes of Collect leave."""
    name = f"night_{night:03d}"
    folders = {layer: project / "data" / layer / name for layer in ("02_intermediate", "03_primary", "08_reporting")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (folders["02_intermediate"] / "quarantine.parquet").touch()
    found = read_tonight(project / "data/01_raw/memories", CollectSettings(), night, ())
    memories_to_frame(found.memories).to_parquet(folders["02_intermediate"] / "memories.parquet")
    pd.DataFrame({"tokens": [30, 12]}).to_parquet(folders["03_primary"] / "contexts.parquet")
    summary = {"kinds": {"text": 5}, "quarantined": 4, "known_before": 3}
    (folders["08_reporting"] / "collected.json").write_text(json.dumps(summary), encoding="utf-8")
    (folders["08_reporting"] / "memory_checks.html").touch()


def night(project: Path, number: int, seconds: float, promoted: bool = True) -> None:
    """Register a night that took a time."""
    registry = NightRegistry(project / "data/06_models")
    checkpoint = registry.folder / f"night_{number:03d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).write_text(json.dumps({"night": number}), encoding="utf-8")
    champion = registry.champion()
    parent = BASE if champion is None else champion.number
    registry.register(Night(number, parent, checkpoint.name, manifest_digest(checkpoint), "2026-11-25T03:00:00+00:00"))
    registry.promote(number) if promoted else registry.reject(number)
    reports = project / "data/08_reporting" / checkpoint.name
    reports.mkdir(parents=True, exist_ok=True)
    parts = {"sampling": seconds, "beliefs": 1.0, "training": 2 * seconds}
    (reports / "metrics.json").write_text(json.dumps({"seconds": parts}), encoding="utf-8")
    (reports / "report.html").touch()


def test_before_the_first_night_everything_is_to_do(project: Path) -> None:
    plan = planned()
    assert (plan["night"], plan["parent"], plan["problems"]) == (1, BASE, [])
    assert [node["done"] for node in plan["nodes"]] == [False] * 10
    assert (plan["seconds"], plan["judged_by"]) == (None, [])
    assert "no night to judge by yet" in invoke().output


@pytest.mark.slow
def test_nodes_stand_in_the_order_of_the_night(project: Path) -> None:
    names = list(nodes(planned()))
    assert names[0] == "collect_memories_node"
    assert names.index("train_expert_node") < names.index("dream_night_node") < names.index("refine_expert_node")
    assert names[-1] == "write_report_node"


@pytest.mark.slow
def test_new_memories_are_those_of_the_nights_own_days(project: Path) -> None:
    assert planned()["memories"] == {
        "new": {"text": 2, "qa": 1},
        "quarantined": 1,
        "known": 0,
        "collected": False,
        "waiting": 1,
        "left": 0,
    }
    assert planned("--params=night=2")["memories"]["new"] == {"text": 3, "qa": 1}


@pytest.mark.slow
def test_memories_beyond_what_a_night_takes_are_counted(project: Path) -> None:
    memories = planned("--params=collect.at_most=1")["memories"]
    assert (memories["new"], memories["left"]) == ({"text": 1}, 2)
    shown = invoke("--params=collect.at_most=1").output
    assert "new memories that wait for the next night (collect.at_most): 2" in shown


@pytest.mark.slow
def test_planning_leaves_nothing_behind(project: Path) -> None:
    before = sorted(project.rglob("*"))
    planned()
    assert sorted(project.rglob("*")) == before


@pytest.mark.slow
def test_what_is_done_is_told_from_what_is_missing(project: Path) -> None:
    collected(project)
    done = {name for name, node in nodes(planned()).items() if node["done"]}
    assert done == {"collect_memories_node", "make_contexts_node"}
    (project / "data/02_intermediate/night_001/quarantine.parquet").unlink()
    (project / "data/03_primary/night_001/contexts.parquet").unlink()
    again = nodes(planned())
    assert again["collect_memories_node"]["missing"] == ["quarantine"]
    assert again["make_contexts_node"]["missing"] == ["contexts"]


@pytest.mark.slow
def test_a_night_that_has_collected_tells_what_it_collected(project: Path) -> None:
    collected(project)
    assert planned()["memories"] == {
        "new": {"text": 5},
        "quarantined": 4,
        "known": 3,
        "collected": True,
        "waiting": 0,
        "left": 0,
    }


@pytest.mark.slow
def test_a_memory_that_was_taken_back_since_is_a_problem(project: Path) -> None:
    collected(project)
    assert planned()["problems"] == []
    (project / "data/01_raw/memories/day_1/questions.jsonl").unlink()
    (told,) = planned()["problems"]
    assert told.startswith("memories/day_1/questions.jsonl:1: ") and "--from-nodes=collect_memories_node" in told


@pytest.mark.slow
def test_a_night_with_too_few_questions_for_the_gate_is_a_problem(project: Path) -> None:
    collected(project)
    samples, reports = (project / "data" / layer / "night_001" for layer in ("05_model_input", "08_reporting"))
    samples.mkdir(parents=True)
    for path in (samples / "teacher_samples.parquet", samples / "lessons.safetensors", reports / "seeded.json"):
        path.touch()
    probes = project / "data/03_primary/night_001/probes.parquet"
    for count, few in ((6, 0), (5, 1)):
        pd.DataFrame({"question": ["?"] * count}).to_parquet(probes)
        told = planned()["problems"]
        assert len(told) == few
    assert "night 1 has 5 questions about its memories, and the gate, which takes 6" in told[0]


@pytest.mark.slow
def test_work_is_counted_from_contexts_and_settings(project: Path) -> None:
    collected(project)
    plan = planned("--params=seeding.teacher.replies=5,seeding.teacher.max_new_tokens=10,seeding.optimizer.steps=7")
    work = {(item["node"], item["what"]): item["amount"] for item in plan["work"]}
    assert work["sample_lessons_node", "tokens read"] == (30 + 12) * 2
    assert work["sample_lessons_node", "tokens written"] == 2 * 5 * 10
    assert work["sample_lessons_node", "tokens written about excerpts"] == 2 * 12 * 6 * 10
    assert work["train_expert_node", "rows trained on"] == 7 * (16 + 0 + 6)
    (training,) = [item["how"] for item in plan["work"] if item["node"] == "train_expert_node"]
    assert training.endswith("; more steps for more than 28 lessons"), "7 steps of 16 rows read so many 4 times"
    (refining,) = [item["how"] for item in plan["work"] if item["node"] == "refine_expert_node"]
    assert refining.endswith("if a dream helps; more steps for more than 1600 lessons"), "200 steps read them 2 times"
    night(project, 1, 1.0)
    collected(project, 2)
    work = {(item["node"], item["what"]): item["amount"] for item in planned()["work"]}
    assert work["train_expert_node", "rows trained on"] == 320 * (16 + 32 + 6), "earlier nights are replayed"


@pytest.mark.slow
def test_rounds_of_rest_em_are_counted_in_place_of_the_nights_own_dreams(project: Path) -> None:
    collected(project)
    plain, rounds = (
        {item["what"]: item["amount"] for item in planned(*extra)["work"] if item["node"] == "dream_night_node"}
        for extra in ((), ("--params=dreaming.rest_em.rounds=2",))
    )
    assert plain == {"tokens dreamt": 2 * 6 * 160, "copies trained": 2 * 6 * 2}
    dreams = (2 * 1 + 3 * 1) * 6
    assert rounds == {
        "tokens dreamt": dreams * 160,
        "copies trained": dreams * 2,
        "dreams that the dreamer is trained on": 2 * 40 * 8,
    }


@pytest.mark.slow
def test_the_time_is_that_of_the_last_three_nights(project: Path) -> None:
    for number, seconds in enumerate((1000.0, 10.0, 30.0, 20.0), start=1):
        night(project, number, seconds, promoted=number == 1)
    plan = planned()
    assert (plan["night"], plan["parent"], plan["judged_by"]) == (5, 1, [2, 3, 4])
    assert plan["seconds"] == 20 + 1 + 40
    assert nodes(plan)["train_expert_node"]["seconds"] == 40
    assert "about 61 s, as nights 2, 3, 4 took" in invoke().output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "could not be read"), ('{"text": ""}\n' * 3, "could not be read"), (None, "holds no new memory for night 1")],
)
def test_what_would_stop_the_night_is_a_problem(project: Path, text: str | None, problem: str) -> None:
    memories = project / "data/01_raw/memories"
    shutil.rmtree(memories)
    memories.mkdir()
    if text is not None:
        (memories / "a.jsonl").write_text(text, encoding="utf-8")
    (told,) = planned()["problems"]
    assert problem in told
    assert f"problem      {told}" in invoke().output


@pytest.mark.slow
def test_a_night_older_than_the_last_one_is_a_problem(project: Path) -> None:
    night(project, 4, 1.0)
    (told,) = planned("--params=night=2")["problems"]
    assert "night 2 would be refused in the end, since night 4 is registered: run it as night 5" in told


@pytest.mark.slow
def test_to_make_the_records_of_a_registered_night_anew_is_a_problem(project: Path) -> None:
    night(project, 1, 1.0)
    (told,) = planned("--params=night=1")["problems"]
    assert "night 1 is registered, and collect_memories_node would make its memories" in told


@pytest.mark.slow
def test_a_night_that_the_register_does_not_know_is_a_problem(project: Path) -> None:
    night(project, 1, 1.0)
    assert not [told for told in planned("--params=night=1")["problems"] if "does not know" in told]
    report = project / "data/08_reporting/night_001/registered.json"
    report.touch()
    (project / "data/06_models/registry.json").unlink()
    (told,) = planned()["problems"]
    assert "says that night 1 is registered, and the register in" in told and "dvc restore" in told


@pytest.mark.slow
def test_probes_and_texts_that_cannot_be_read_are_problems(project: Path) -> None:
    probes = project / "data/01_raw/probes"
    probes.mkdir()
    (probes / "mine.jsonl").write_text("{}\n", encoding="utf-8")
    local = project / "conf/local/parameters.yml"
    local.write_text("evaluation: {texts: [none.txt]}\n", encoding="utf-8")
    first, second = planned()["problems"]
    assert first.startswith("probes/mine.jsonl:1: ")
    assert "'none.txt' matches no file" in second


@pytest.mark.slow
def test_a_disk_without_room_for_what_the_night_leaves_is_a_problem(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = planned()["needs"]["disk"] - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    (told,) = planned()["problems"]
    assert f"06_models has {free:,} bytes left, and the night needs {free + 1:,}: make room" in told


@pytest.mark.slow
def test_after_pruning_the_next_night_is_planned_as_before(project: Path) -> None:
    def weigh(folder: str) -> None:
        path = project / "data/06_models" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "weights").write_bytes(bytes(5_000_000))

    for number, promoted in ((1, True), (2, True), (3, False)):
        collected(project, number)
        night(project, number, 1.0, promoted)
        for folder in ("", "seeded/"):
            weigh(f"{folder}night_{number:03d}")
        pd.DataFrame({"question": ["Who?"]}).to_parquet(project / f"data/03_primary/night_{number:03d}/probes.parquet")
        (project / f"data/08_reporting/night_{number:03d}/retention.json").touch()
    before = planned()
    pruned = CliRunner().invoke(cli, ["prune", "--keep=1", "--yes"])
    assert pruned.exit_code == 0, pruned.output
    after = planned()
    assert (after["night"], after["parent"], after["problems"]) == (4, 2, [])
    assert after["needs"]["disk"] == pytest.approx(before["needs"]["disk"], rel=1e-3)
    unchanged = ("nodes", "memories", "work", "seconds")
    assert [after[part] for part in unchanged] == [before[part] for part in unchanged]


@pytest.mark.slow
def test_a_champion_without_its_checkpoint_is_an_error(project: Path) -> None:
    night(project, 1, 1.0)
    shutil.rmtree(project / "data/06_models/night_001")
    result = invoke()
    assert result.exit_code == 1
    assert "night_001 holds no complete checkpoint" in result.output


@pytest.mark.slow
def test_while_a_night_is_under_way_the_plan_is_refused_as_a_run_would_be(project: Path) -> None:
    with NightLock(project / "data/06_models"):
        result = invoke()
    assert result.exit_code == 1
    assert "A night is under way" in result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("seding.rows=3", "did you mean 'seeding'"),
        ("seeding.rows=many", "rows"),
        ("night=0", "is no night"),
        ("night", "must contain a key and a value"),
    ],
)
def test_a_wrong_parameter_is_an_error(project: Path, params: str, message: str) -> None:
    result = invoke(f"--params={params}")
    assert isinstance(result.exception, SystemExit) and result.exit_code, "no traceback"
    assert message in result.output


@pytest.mark.slow
def test_each_environment_has_a_life_of_its_own(project: Path) -> None:
    night(project, 1, 1.0)
    assert planned()["night"] == 2
    assert planned("--env=smoke")["night"] == 1


@pytest.mark.slow
def test_where_contexts_are_made_no_torch_is_needed(project: Path, run_script: Callable[[str], str]) -> None:
    collected(project)
    code = "import sys; from sleep_pipeline.cli import cli; cli(['plan', '--json'], standalone_mode=False); "
    assert run_script(f"{code}print('torch' in sys.modules)").splitlines()[-1] == "False"


@pytest.fixture
def run_script(project: Path) -> Callable[[str], str]:
    def run(code: str) -> str:
        result = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.slow
def test_files_that_wait_for_a_later_night_are_counted(project: Path) -> None:
    before = planned()["memories"]["waiting"]
    folder = project / "data/01_raw/memories/day_20261126"
    folder.mkdir()
    (folder / "notes.md").write_text("The ferry leaves at 4.\n", encoding="utf-8")
    assert planned()["memories"]["waiting"] == before + 1
    assert f"files for a later night, as the names of their folders day_N say: {before + 1}" in invoke().output
