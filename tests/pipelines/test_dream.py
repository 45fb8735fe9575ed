"""The dreamer from night to night: the nodes that keep it, in a life of a tiny model."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sleep_pipeline.datasets import Pretrained, PretrainedDataset
from sleep_pipeline.dreaming.settings import (
    DreamingSettings,
    DreamSettings,
    RestEmSettings,
    RewardSettings,
    TrialSettings,
)
from sleep_pipeline.memories.contexts import split_probes
from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.night_model import LevelSettings, MachineSettings, MemorySettings, StorePart, open_model
from sleep_pipeline.pipelines.dream.nodes import dream_night
from sleep_pipeline.pipelines.refine.nodes import refine_expert
from sleep_pipeline.pipelines.seed.nodes import FOR_DREAMS, champion_number
from sleep_pipeline.registry import BASE, Night, NightRegistry, RegistryError, manifest_digest
from sleep_pipeline.seeding.settings import RefineSettings, ReplaySettings, SeedingSettings
from sleep_pipeline.seeding.teacher import TeacherSettings

MACHINE, MEMORY = MachineSettings(device="cpu"), MemorySettings(levels=(LevelSettings(num_slots=8, rank=4),))
ROUND = RestEmSettings(rounds=1, rank=2, steps=2, rows=2, lr=0.01)
ASKED = {
    "Mira lives in Osk.": ("Where does Mira live?", "In Osk"),
    "Osk has 12 inns.": ("How many inns are there?", "There are 12"),
    "The mill is red.": ("What colour is the mill?", "It is red"),
    "Sela paints.": ("What does Sela do?", "She paints"),
}
WEIGHTS = "dreamer/adapter_model.safetensors"
KIND = ("rewrite", "Tell the same in other words.")


class Life:
    """Nights of which only dreaming and refinement are lived, with dreams that are written down beforehand."""

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base
        self.models, self.primary, self.probes = folder / "models", folder / "primary", folder / "probes"
        self.registry = NightRegistry(self.models)
        self.began_with: list[dict[str, Any]] = []
        self.shares: list[dict[str, float]] = []
        self.usable = True

    def sample(
        self, dreamer: Any, tokenizer: Any, contexts: Sequence[str], settings: Any, seed: int, *_: Any, **more: Any
    ) -> Any:
        from sleep_pipeline.dreaming.dreams import DreamData, DreamText

        self.withheld = more["withheld"]
        weights = {name: p.detach().clone() for name, p in dreamer.named_parameters() if "lora_" in name}
        self.began_with.append(weights)
        self.shares.append({prompt.kind: prompt.share for prompt in settings.prompts})
        kind, ask = KIND
        dreams = [DreamText(at, kind, text, ask, text, (ASKED[text],)) for at, text in enumerate(contexts)]
        if not self.usable:
            return DreamData([], Counter({"malformed": len(dreams)}), len(dreams))
        return DreamData(dreams, Counter(), len(dreams))

    def seed(self, night: int) -> Path:
        """A memory in mid-sleep that grew from the champion."""
        from sleep_pipeline.memory import CONTEXT, Consolidation

        champion = self.registry.champion()
        parent = None if champion is None else self.registry.checkpoint(champion.number)
        opened = open_model(self.base, MACHINE, MEMORY, ReplaySettings(), parent)
        Consolidation(opened.model, sender=CONTEXT, receiver=1, night=night).begin()
        dataset = PretrainedDataset(str(self.models / "seeded" / f"night_{night:03d}"))
        dataset.save(Pretrained((opened.model, StorePart(opened.store)), {"parent": champion_number(self.models)}))
        return dataset.load()

    def dream(
        self,
        night: int,
        rest_em: RestEmSettings,
        contexts: int = 4,
        dreams: int = 6,
        seeding: SeedingSettings | None = None,
    ) -> tuple[dict[str, Any], Path]:
        """The summary, and the folder of the dreamer."""
        texts = list(ASKED)[:contexts]
        table = pd.DataFrame({"text": texts})
        (self.primary / f"night_{night:03d}").mkdir(parents=True, exist_ok=True)
        table.to_parquet(self.primary / f"night_{night:03d}" / "contexts.parquet")
        samples = pd.DataFrame(
            [(at, *ASKED[text], FOR_DREAMS) for at, text in enumerate(texts)],
            columns=["context", "question", "answer", "use"],
        )
        dreaming = DreamingSettings(
            dreams=DreamSettings(dreams=dreams),
            trials=TrialSettings(steps=12, lr=5e-3),
            rewards=RewardSettings(seeds=2, noise="seeds", racing=1.0),
            rest_em=rest_em,
        )
        *_, summary, _, dreamer = dream_night(
            self.seed(night),
            table,
            samples,
            pd.DataFrame({"question": ["Who asks this?"]}),
            CollectSettings(),
            self.base,
            MACHINE,
            MEMORY,
            seeding or SeedingSettings(),
            dreaming,
            night,
            0,
            self.models,
            self.primary,
            self.probes,
        )
        dataset = PretrainedDataset(str(self.models / "dreamer" / f"night_{night:03d}"))
        dataset.save(dreamer)
        return summary, dataset.load()

    def end(self, night: int, dreamer: Path) -> Path:
        """Refine, register and promote; the checkpoint."""
        refined = refine_expert(
            self.models / "seeded" / f"night_{night:03d}",
            {"tonight": [], "open_book": []},
            {"tonight": []},
            dreamer,
            self.base,
            MACHINE,
            MEMORY,
            SeedingSettings(),
            RefineSettings(),
            night,
            0,
            {"samples": 0},
            self.models,
            self.folder / "progress",
        )
        checkpoint = PretrainedDataset(str(self.models / f"night_{night:03d}"))
        checkpoint.save(refined)
        champion = self.registry.champion()
        parent = BASE if champion is None else champion.number
        digest = manifest_digest(checkpoint.load())
        self.registry.register(Night(night, parent, checkpoint.load().name, digest, "2026-01-01T00:00:00Z"))
        self.registry.promote(night)
        return checkpoint.load()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Any, tiny_tokenizer: Any) -> str:
    """Folder of a causal LM with random weights."""
    from sleep_pipeline.pretraining.trainer import build_model

    folder = tmp_path_factory.mktemp("base")
    build_model(tiny_settings.architecture, tiny_tokenizer, seed=0).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def make_life(folder: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> Life:
    life = Life(folder, base)
    monkeypatch.setattr("sleep_pipeline.dreaming.rest_em.sample_dreams", life.sample)
    monkeypatch.setattr("sleep_pipeline.dreaming.night.sample_dreams", life.sample)
    return life


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, base: str) -> Iterator[tuple[Life, dict[str, Any], Path]]:
    """A life after one night with a round of ReST-EM; its summary and checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        life = make_life(tmp_path_factory.mktemp("life"), base, patch)
        summary, dreamer = life.dream(1, ROUND)
        yield life, summary, life.end(1, dreamer)


@pytest.fixture
def second(lived: tuple[Life, dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    """The same life in a folder of its own, before its second night."""
    import shutil

    shutil.copytree(lived[0].folder, tmp_path / "life")
    return make_life(tmp_path / "life", lived[0].base, monkeypatch)


def tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name.replace(".weight", ""): value for name, value in load_file(path).items()}


def plain(weights: dict[str, Any]) -> dict[str, Any]:
    """Named as a file of the adapter names them."""
    return {
        name.replace("mlp.base_layer.", "mlp.").replace(".dreamer.weight", ""): value for name, value in weights.items()
    }


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    import torch

    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_the_summary_tells_of_the_rounds(lived: tuple[Life, dict[str, Any], Path]) -> None:
    rounds = dict(lived[1]["rest_em"])
    assert rounds.pop("says").startswith("1 round of ReST-EM, 0 dropped by the guard")
    assert rounds == {
        "rounds": 1, "before": 1.0, "after": 1.0, "dropped": 0, "idle": 0, "trained_on": 2, "held_out": 2,
    }  # fmt: skip
    assert (lived[1]["dreams"], lived[1]["tried"], lived[1]["rewarded"]) == (4, 4, 4)


def test_the_checkpoint_keeps_the_dreamer_and_its_manifest_names_it(lived: tuple[Life, dict[str, Any], Path]) -> None:
    import hashlib

    life, _, checkpoint = lived
    record = json.loads((checkpoint / "manifest.json").read_text())["dreamer"]
    digest = hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest()
    mix = {(found["kind"], found["ask"]): found["times"] for found in record.pop("mix")}
    assert record == {"rank": 2, "alpha": 16.0, "targets": None, "sha256": digest}
    assert mix[KIND] > 1, "the only kind that was dreamt and rewarded"
    assert {times for kind, times in mix.items() if kind != KIND} == {RestEmSettings().explore}
    assert not same(plain(life.began_with[0]), tensors(checkpoint / WEIGHTS)), "the round taught it something"
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("dreamer")} == {WEIGHTS, "dreamer/adapter_config.json"}


@pytest.mark.slow
def test_the_next_night_begins_with_the_dreamer_of_its_parent(second: Life) -> None:
    before = tensors(second.models / "night_001" / WEIGHTS)
    _, dreamer = second.dream(2, ROUND)
    assert same(plain(second.began_with[0]), before)
    kinds = second.shares[0]
    assert kinds["rewrite"] > 10 * kinds["summary"], "and with the kinds that it has learned to dream of"
    checkpoint = second.end(2, dreamer)
    after = tensors(checkpoint / WEIGHTS)
    assert after.keys() == before.keys() and not same(after, before)


@pytest.mark.slow
def test_a_night_without_rounds_hands_the_dreamer_on(second: Life) -> None:
    summary, dreamer = second.dream(2, RestEmSettings())
    assert "rest_em" not in summary and not any(second.began_with)
    checkpoint = second.end(2, dreamer)
    parent = second.models / "night_001"
    assert (checkpoint / WEIGHTS).read_bytes() == (parent / WEIGHTS).read_bytes()
    records = [json.loads((folder / "manifest.json").read_text())["dreamer"] for folder in (parent, checkpoint)]
    assert records[0] == records[1]


@pytest.mark.slow
@pytest.mark.parametrize("rest_em", [RestEmSettings(), ROUND])
def test_no_dream_learns_what_is_asked(second: Life, rest_em: RestEmSettings) -> None:
    table = pd.DataFrame([("Where was Ilo?", "Osk", "given")], columns=["question", "answer", "origin"])
    table.to_parquet(second.primary / "night_001" / "probes.parquet")
    second.probes.mkdir(exist_ok=True)
    given = {"question": "Who wrote this down?", "answer": "Ilo", "source": "notes.md:1"}
    (second.probes / "mine.jsonl").write_text(json.dumps(given), encoding="utf-8")
    second.dream(2, rest_em)
    assert second.withheld("who  asks THIS?"), "a question of tonight's probes"
    assert second.withheld("Where was Ilo?"), "of an earlier night's"
    assert second.withheld("Who wrote this down?"), "of people, whichever night it is about"
    made_up = [f"Who is number {number}?" for number in range(200)]
    held = [question for question in made_up if second.withheld(question)]
    collect = CollectSettings()
    assert held == split_probes(made_up, collect.probe_share, collect.probe_salt)[1] and 20 < len(held) < 60


@pytest.mark.slow
def test_a_night_that_was_seeded_on_another_champion_is_not_ended(second: Life) -> None:
    _, dreamer = second.dream(2, RestEmSettings())
    second.registry.rollback()
    with pytest.raises(
        RegistryError, match=r"seeded on night 1, and the champion is night 0.*--from-nodes=sample_less"
    ):
        second.end(2, dreamer)


@pytest.mark.slow
def test_one_context_skips_the_rounds_with_a_reason_and_hands_the_dreamer_on(second: Life) -> None:
    summary, dreamer = second.dream(2, ROUND, contexts=1)
    assert summary["rest_em"]["rounds"] == 0 and "skipped: 1 of 1 context" in summary["rest_em"]["says"]
    parent = second.models / "night_001"
    assert same(plain(second.began_with[0]), tensors(parent / WEIGHTS)), "it dreams with the dreamer that there is"
    assert (dreamer / WEIGHTS).read_bytes() == (parent / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_night_without_dreams_hands_the_dreamer_on(second: Life) -> None:
    summary, dreamer = second.dream(2, ROUND, dreams=0)
    assert summary["says"] == "dreaming is off" and not any(second.began_with)
    assert (dreamer / WEIGHTS).read_bytes() == (second.models / "night_001" / WEIGHTS).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("rest_em", [RestEmSettings(), ROUND])
def test_a_night_of_which_no_dream_is_usable_goes_on(second: Life, rest_em: RestEmSettings) -> None:
    second.usable = False
    summary, _ = second.dream(2, rest_em)
    assert (summary["dreams"], summary["usable"], summary["dropped"]) == (4, 0, {"malformed": 4})
    if rest_em.rounds:
        assert "1 without a dream that helped" in summary["rest_em"]["says"]


@pytest.mark.slow
def test_a_dreamer_of_another_form_is_refused_with_the_remedy(second: Life) -> None:
    with pytest.raises(ValueError, match=r"rank 2, asked for 4.*set dreaming\.rest_em\.rank=2,"):
        second.dream(2, ROUND.model_copy(update={"rank": 4}))
    with pytest.raises(ValueError, match=r"targets None, asked for \['q_proj'\].*targets=null,"):
        second.dream(2, ROUND.model_copy(update={"targets": ("q_proj",)}))


@pytest.mark.slow
def test_a_dreamer_that_is_not_what_the_manifest_says_is_refused(second: Life) -> None:
    path = second.models / "night_001" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"has the digest .*dvc checkout"):
        second.dream(2, ROUND)
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        second.dream(2, ROUND)


@pytest.mark.slow
def test_a_default_night_has_no_dreamer_and_is_otherwise_the_same(
    lived: tuple[Life, dict[str, Any], Path], base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = make_life(tmp_path, base, monkeypatch)
    summary, dreamer = life.dream(1, RestEmSettings())
    assert "rest_em" not in summary
    assert [path.name for path in dreamer.iterdir()] == ["manifest.json"]
    checkpoint = life.end(1, dreamer)
    assert not (checkpoint / "dreamer").exists()
    assert "dreamer" not in json.loads((checkpoint / "manifest.json").read_text())
    for name in ("adapter_model.safetensors", "replay.safetensors"):
        assert (checkpoint / name).read_bytes() == (lived[2] / name).read_bytes()
    # An older checkpoint looks like that one; a night with rounds begins with a dreamer of its own.
    life.dream(2, ROUND)
    assert all(not value.any() for name, value in life.began_with[1].items() if "lora_B" in name)


@pytest.mark.slow
def test_beliefs_about_dreams_are_read_in_the_teachers_batches(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    life = make_life(tmp_path / "life", base, monkeypatch)
    life.usable = False
    monkeypatch.setattr("sleep_pipeline.seeding.lessons.read_beliefs", lambda *asked, **_: sizes.append(asked[5]) or [])
    life.dream(1, RestEmSettings(), seeding=SeedingSettings(teacher=TeacherSettings(batch_size=3)))
    assert sizes == [3]


@pytest.mark.slow
def test_refining_takes_more_steps_for_many_lessons(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sleep_pipeline.seeding.divergences import cache_teacher
    from sleep_pipeline.seeding.lessons import Lesson

    life = make_life(tmp_path / "life", base, monkeypatch)
    taken: list[SeedingSettings] = []
    monkeypatch.setattr("sleep_pipeline.seeding.night.learn", lambda *given, **_: taken.append(given[4]))
    lesson = Lesson((5, 6, 7), 1, cache_teacher(torch.randn(2, 9), 3), (5,))
    for night, refining in enumerate((RefineSettings(steps=4), RefineSettings(steps=4, passes=0)), start=1):
        refine_expert(
            life.seed(night),
            {"tonight": [lesson] * 3, "open_book": []},
            {"tonight": [lesson] * 2},
            life.models / "seeded" / f"night_{night:03d}",
            base,
            MACHINE,
            MEMORY,
            SeedingSettings(rows=1),
            refining,
            night,
            0,
            {"samples": 3},
            life.models,
            tmp_path / "progress",
        )
    assert [settings.optimizer.steps for settings in taken] == [10, 4], "2 passes over 5 lessons, or as many as given"
