from typing import Any

import pytest
from pydantic import ValidationError

from sleep_pipeline.pretraining.settings import PretrainSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": {"vocab_size": 200}}, "vocab_size=200 is smaller than the alphabet"),
        ({"architecture": {"hidden_size": 100, "num_heads": 3}}, "num_heads=3 must divide hidden_size=100"),
        ({"row_lengths": [512, 256]}, "must increase"),
        ({"row_lengths": [256, 4096]}, "longer than architecture.max_positions=2048"),
        ({"batch_tokens": 512}, "batch_tokens=512 is less than two of the longest rows"),
        ({"stpes": 3}, "stpes"),
        ({"optimizer": {"lr": 3}}, "optimizer.lr"),
        ({"steps": 0}, "greater than 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PretrainSettings.model_validate(values)
