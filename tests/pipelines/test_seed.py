from pathlib import Path

import pytest

from sleep_pipeline.memories.settings import CollectSettings
from sleep_pipeline.pipelines.seed.nodes import FOR_DREAMS, TO_ASK, TO_LEARN, _use, parent_checkpoint
from sleep_pipeline.registry import Night, NightRegistry, RegistryError, manifest_digest


def registered(folder: Path) -> NightRegistry:
    checkpoint = folder / "night_001"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text("{}", encoding="utf-8")
    registry = NightRegistry(folder)
    registry.register(Night(1, 0, "night_001", manifest_digest(checkpoint), "2026-01-01T00:00:00Z"))
    return registry


def test_a_night_grows_from_the_champion(tmp_path: Path) -> None:
    assert parent_checkpoint(tmp_path, 1) is None
    registry = registered(tmp_path)
    assert parent_checkpoint(tmp_path, 2) is None, "a night that was not promoted is nobody's parent"
    registry.promote(1)
    assert parent_checkpoint(tmp_path, 2) == tmp_path / "night_001"


def test_a_registered_night_is_not_lived_again(tmp_path: Path) -> None:
    registered(tmp_path)
    with pytest.raises(RegistryError, match=r"night 1 is registered.*as night 2"):
        parent_checkpoint(tmp_path, 1)


def test_the_use_of_a_question_is_its_own_and_dreams_are_judged_by_other_ones_than_the_night() -> None:
    uses = [_use(f"How many inns has town {number}?", CollectSettings()) for number in range(2000)]
    assert uses == [_use(f"how many  inns has town {number}?", CollectSettings()) for number in range(2000)]
    shares = {use: uses.count(use) / len(uses) for use in (TO_LEARN, TO_ASK, FOR_DREAMS)}
    assert shares[TO_LEARN] == pytest.approx(0.8, abs=0.03)
    assert shares[TO_ASK] == pytest.approx(0.1, abs=0.03)
    assert shares[FOR_DREAMS] == pytest.approx(0.1, abs=0.03)
