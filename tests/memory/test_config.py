import json
from pathlib import Path
from typing import Any

import peft
import pytest

from sleep_pipeline.memory import CONTINUUM, ContinuumMemoryConfig, LevelConfig
from sleep_pipeline.memory.registration import add_peft_type


def test_peft_knows_the_method_by_name_value_and_attribute() -> None:
    assert peft.PeftType("CONTINUUM") is peft.PeftType["CONTINUUM"] is peft.PeftType.CONTINUUM is CONTINUUM
    assert "CONTINUUM" in list(peft.PeftType)
    assert peft.PeftType("LORA") is peft.PeftType.LORA


def test_adding_a_method_twice_gives_the_same_member() -> None:
    assert add_peft_type("CONTINUUM") is CONTINUUM
    assert list(peft.PeftType).count(CONTINUUM) == 1


def test_the_configuration_survives_its_file(tmp_path: Path) -> None:
    config = ContinuumMemoryConfig(
        levels=[LevelConfig(period=2, num_slots=3, rank=4), LevelConfig(top_k=2, router="null_softmax")], seed=5
    )
    config.save_pretrained(str(tmp_path))
    loaded = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert loaded == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "CONTINUUM"


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ({"num_slots": 1}, "num_slots of a memory level is 1"),
        ({"rank": 0}, "rank of a memory level is 0"),
        ({"rank": 2.5}, "rank of a memory level is 2.5"),
        ({"top_k": 0}, "top_k of a memory level is 0"),
        ({"router": "oracle"}, "router 'oracle' is unknown; choose one of null_softmax"),
        ({"router_gain": 0.0}, "router_gain is 0.0"),
        ({"base_width": 0}, "base_width of a memory level is 0"),
    ],
)
def test_a_level_that_no_model_could_use_is_refused(level: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LevelConfig(**level)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"levels": []}, "levels is empty"),
        ({"activation": "tanh"}, "activation 'tanh' is unknown"),
        ({"levels": [LevelConfig(), LevelConfig()]}, "level 1 of 2 has no period"),
        ({"levels": [LevelConfig(period=6), LevelConfig(period=3), LevelConfig()]}, "periods must increase"),
        ({"levels": [LevelConfig(period=2), LevelConfig(period=5), LevelConfig()]}, "not a multiple of 2"),
        ({"levels": [LevelConfig(period=4), LevelConfig(period=2)]}, "periods must increase"),
        ({"levels": [LevelConfig(period=8, num_slots=5), LevelConfig()]}, "receives 8 experts .* only 5 slots"),
    ],
)
def test_levels_that_do_not_fit_together_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContinuumMemoryConfig(**config)


def test_the_frozen_slowest_level_may_name_a_period() -> None:
    config = ContinuumMemoryConfig(levels=[LevelConfig(period=2), LevelConfig(period=4)])
    assert config.periods == [1, 2]
