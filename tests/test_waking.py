"""The model of a night beside its parent, on lives of tiny models, and the command that asks them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sleep_pipeline.cli import cli
from sleep_pipeline.datasets.pretrained import FILES, file_digests
from sleep_pipeline.night_model import LevelSettings, MachineSettings, MemorySettings, NightModel, StorePart, open_model
from sleep_pipeline.registry import BASE, MANIFEST, Night, NightRegistry, PrunedError, RegistryError, manifest_digest
from sleep_pipeline.seeding.settings import ReplaySettings
from sleep_pipeline.waking import Awake, view_before, wake_night

MEMORY = MemorySettings(levels=(LevelSettings(num_slots=4, rank=4),))
QUESTION = "Where does Mira work?"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Any, tiny_tokenizer: Any) -> str:
    """Folder of a causal LM with random weights."""
    from sleep_pipeline.pretraining.trainer import build_model

    folder = tmp_path_factory.mktemp("base")
    build_model(tiny_settings.architecture, tiny_tokenizer, seed=0).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def opened(base: str, checkpoint: Path | None = None) -> NightModel:
    return open_model(base, MachineSettings(device="cpu"), MEMORY, ReplaySettings(), checkpoint)


def fill(model: Any, seed: int) -> None:
    """Give the expert in training random weights and an open gate, as if it had learned something."""
    import torch

    from sleep_pipeline.memory.operations import level_tensors, state_of

    generator = torch.Generator().manual_seed(seed)
    for tensors in level_tensors(state_of(model), 1):
        with torch.no_grad():
            for name in ("new_key", "new_offset", "new_up"):
                parameter = tensors.get_parameter(name)
                parameter.add_(torch.randn(parameter.shape, generator=generator))


def sleep_once(model: Any, night: int, merged: tuple[int, ...] = ()) -> None:
    from sleep_pipeline.memory import activate, consolidation, unlock

    if merged:
        with consolidation(model, sender=1, receiver=1, slots=merged, night=night) as sleep:
            fill(model, 100 + night)
            sleep.commit()
    unlock(model, 1, night=night)
    fill(model, night)
    activate(model, 1)


def sleep_plastically(model: Any, night: int) -> None:
    """A night in which earlier experts learn as well."""
    import torch

    from sleep_pipeline.memory import CONTEXT, consolidation
    from sleep_pipeline.memory.operations import trained_slots

    with consolidation(model, CONTEXT, 1, night=night, plastic=True) as sleep:
        fill(model, night)
        with torch.no_grad():
            for slots in trained_slots(model):
                slots.mul_(1.5)
        sleep.commit()


def register(
    registry: NightRegistry, opened: NightModel, number: int, parent: int, base: str, dtype: str = "auto"
) -> None:
    checkpoint = registry.folder / f"night_{number:03d}"
    opened.model.save_pretrained(str(checkpoint))
    StorePart(opened.store).save_pretrained(str(checkpoint))
    manifest = {
        "night": number,
        "base_model": {"name": base, "dtype": dtype},
        "memory": MEMORY.model_dump(mode="json"),
        FILES: file_digests(checkpoint),
    }
    (checkpoint / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    time = "2026-11-25T03:00:00+00:00"
    registry.register(Night(number, parent, checkpoint.name, manifest_digest(checkpoint), time))
    registry.promote(number)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, base: str) -> Path:
    """Nights that grow from each other; the third merges the experts of the others, the fourth changes those it has."""
    registry = NightRegistry(tmp_path_factory.mktemp("life"))
    live = opened(base)
    for number, merged in ((1, ()), (2, ()), (3, (0, 1))):
        sleep_once(live.model, number, merged)
        register(registry, live, number, number - 1, base)
    sleep_plastically(live.model, 4)
    register(registry, live, 4, 3, base)
    registry.rollback(3)
    return registry.folder


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(3, 12)[None]).logits


def sides(awake: Awake) -> list[Any]:
    found = []
    for side in awake.sides:
        with side.view():
            found.append(logits(awake.opened.model))
    return found


def woken(life: Path, night: int) -> Awake:
    return wake_night(NightRegistry(life), night, MachineSettings(device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("night", [1, 2, 3, 4])
def test_the_sides_are_the_parents_checkpoint_and_the_nights(life: Path, base: str, night: int) -> None:
    import torch

    before, after = sides(woken(life, night))
    parent = None if night == 1 else life / f"night_{night - 1:03d}"
    torch.testing.assert_close(before, logits(opened(base, parent).model), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, logits(opened(base, life / f"night_{night:03d}").model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-2)


@pytest.mark.slow
def test_the_parents_checkpoint_is_read_only_where_experts_were_changed(life: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(life, tmp_path / "life")
    shutil.rmtree(copied / "night_001")
    assert woken(copied, 2).sides[0].label == "parent (night 1)"
    shutil.rmtree(copied / "night_002")
    with pytest.raises(RegistryError, match="night_002 holds no complete checkpoint"):
        woken(copied, 3)
    shutil.rmtree(copied / "night_003")
    with pytest.raises(RegistryError, match="night_003 holds no complete checkpoint"):
        woken(copied, 4)


def test_a_damaged_checkpoint_of_the_parent_is_noticed_where_it_is_read(life: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(life, tmp_path / "life")
    weights = copied / "night_002/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match=r"night_002/adapter_model.safetensors has the digest .* \(dvc checkout\)"):
        woken(copied, 3)


@pytest.mark.slow
def test_a_night_is_asked_in_the_dtype_of_the_nights(base: str, tmp_path: Path) -> None:
    import torch

    machine = MachineSettings(device="cpu", dtype="bfloat16")
    live = open_model(base, machine, MEMORY, ReplaySettings(), None)
    sleep_once(live.model, 1)
    register(NightRegistry(tmp_path), live, 1, BASE, base, machine.dtype)
    awake = woken(tmp_path, 1)
    assert awake.opened.model.dtype == torch.bfloat16
    for side in awake.sides:
        with side.view():
            assert logits(awake.opened.model).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_night_whose_parent_was_pruned_answers_alone_and_a_pruned_one_not_at_all(life: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(life, tmp_path / "life")
    NightRegistry(copied).prune([1, 2])
    for number in (1, 2):
        shutil.rmtree(copied / f"night_{number:03d}")
    assert [side.label for side in woken(copied, 3).sides] == ["night 3"]
    with pytest.raises(PrunedError, match="the checkpoint of night 2 was pruned"):
        woken(copied, 2)


@pytest.mark.slow
def test_a_night_without_an_expert_is_its_parent(base: str, tmp_path: Path) -> None:
    import torch

    registry = NightRegistry(tmp_path)
    live = opened(base)
    sleep_once(live.model, 1)
    register(registry, live, 1, BASE, base)
    register(registry, live, 2, 1, base)
    before, after = sides(woken(tmp_path, 2))
    assert torch.equal(before, after)


@pytest.mark.slow
def test_a_night_is_loaded_for_code_of_ones_own(life: Path, base: str) -> None:
    import torch

    from sleep_pipeline import load_night
    from sleep_pipeline.memory import base_view

    champion, tokenizer = load_night(life)
    torch.testing.assert_close(logits(champion), logits(opened(base, life / "night_003").model))
    second, _ = load_night(str(life), 2, machine=MachineSettings(device="cpu"))
    torch.testing.assert_close(logits(second), logits(opened(base, life / "night_002").model))
    with base_view(champion):
        torch.testing.assert_close(logits(champion), logits(opened(base).model))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert champion.generate(**prompt.to(champion.device), max_new_tokens=3, do_sample=False).shape[0] == 1


def test_a_folder_without_a_live_night_says_what_to_do(tmp_path: Path) -> None:
    from sleep_pipeline import load_night

    with pytest.raises(RegistryError, match=r"no night of .* is live \(registered: none\): .*load_model"):
        load_night(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("night", [2, 3, 4])
def test_the_evaluation_of_a_night_that_is_not_registered_yet_measures_its_parent(
    life: Path, base: str, night: int
) -> None:
    from sleep_pipeline.evaluation.language import language_fit
    from sleep_pipeline.evaluation.settings import EvaluationSettings
    from sleep_pipeline.pipelines.evaluate.nodes import _skills

    def fit(model: NightModel) -> float:
        return language_fit(model.model, model.tokenizer, [text]).perplexity

    text, parent = "The quiet harbour lay under a grey sky. " * 6, life / f"night_{night - 1:03d}"
    now = opened(base, life / f"night_{night:03d}")
    before = view_before(now.model, night, night - 1, NightRegistry(life))
    earlier = {"night": night - 1, "reading_answers": [0] * 4, "perplexity": 1.0, "base": {"reading": [0] * 4}}
    found = _skills(now, earlier, EvaluationSettings(reading_questions=4), [text], before)
    assert found["perplexity_before"] == pytest.approx(fit(opened(base, parent)), rel=1e-4)
    assert found["base"]["perplexity"] == pytest.approx(fit(opened(base)), rel=1e-4)
    assert found["perplexity"] == pytest.approx(fit(now), rel=1e-4)
    assert len({round(value, 2) for value in (found["perplexity"], found["perplexity_before"])}) == 2


@pytest.fixture
def project(
    project_root: Path, toy_project: Callable[..., Path], base: str, life: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A project with the configuration of this one and the three nights."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (project_root / "conf/base").glob("*.yml")}
    path = toy_project({**texts, "mlflow.yml": "enabled: false\n"})
    small = "memory: {levels: [{num_slots: 4, rank: 4}]}"
    (path / "conf/local/parameters.yml").write_text(
        f"model: {base}\nmachine: {{device: cpu}}\n{small}\n", encoding="utf-8"
    )
    shutil.copytree(life, path / "data/06_models")
    monkeypatch.chdir(path)
    return path


def invoke(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli, ["wake", "--max-new-tokens=4", *arguments], **options)


def labels(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    lines = [line.removeprefix("> ") for line in result.output.splitlines()]
    known = ("parent (night 2)", "parent (night 1)", "parent (base model)", "night", "base model")
    return [line.split("  ")[0] for line in lines if line.startswith(known)]


def test_the_champion_and_its_parent_answer_by_default(project: Path) -> None:
    assert labels(invoke("--question", QUESTION)) == ["parent (night 2)", "night 3"]


@pytest.mark.slow
def test_any_night_can_be_asked(project: Path) -> None:
    assert labels(invoke("--night=1", "--question", QUESTION)) == ["parent (base model)", "night 1"]


@pytest.mark.slow
def test_questions_are_read_until_exit_and_empty_lines_are_passed_over(project: Path) -> None:
    result = invoke("--night=2", input=f"{QUESTION}\n\n{QUESTION}\nexit\n{QUESTION}\n")
    assert labels(result) == ["parent (night 1)", "night 2"] * 2


@pytest.mark.slow
def test_the_end_of_the_input_ends_the_talk(project: Path) -> None:
    assert labels(invoke("--night=2", input=f"{QUESTION}\n")) == ["parent (night 1)", "night 2"]


@pytest.mark.slow
def test_before_any_night_the_base_model_answers_alone(project: Path) -> None:
    (project / "data/06_models/registry.json").unlink()
    result = invoke("--question", QUESTION)
    assert result.output.startswith("No night is live")
    assert labels(result) == ["base model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--night=7"], "night 7 is not registered (registered: 1, 2, 3, 4)"),
        (["--question", " "], "the question is empty"),
        (["--question", "Mira " * 2000], "do not fit into the model's window"),
    ],
)
def test_what_cannot_be_asked_is_an_error(project: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code
    assert message in result.output


def test_what_is_wrong_with_the_register_or_the_settings_is_told_without_a_traceback(project: Path) -> None:
    register = project / "data/06_models/registry.json"
    register.write_text("{", encoding="utf-8")
    broken = invoke("--question", QUESTION)
    assert isinstance(broken.exception, SystemExit) and "sleep-pipeline dvc restore" in broken.output
    settings = project / "conf/local/parameters.yml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("device: cpu", "device: mps"), encoding="utf-8")
    wrong = invoke("--question", QUESTION)
    assert isinstance(wrong.exception, SystemExit) and "device='mps' cannot run a night" in wrong.output


def test_a_missing_checkpoint_is_an_error_with_a_remedy(project: Path) -> None:
    shutil.rmtree(project / "data/06_models/night_002")
    result = invoke("--night=2", "--question", QUESTION)
    assert result.exit_code == 1
    assert "night_002 holds no complete checkpoint" in result.output
    assert "dvc pull" in result.output


def test_the_command_imports_no_torch_before_it_is_used(project_root: Path) -> None:
    code = "import sys, sleep_pipeline.cli; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=project_root, env=os.environ, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
