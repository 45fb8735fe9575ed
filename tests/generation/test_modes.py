import pytest
from torch import nn

from sleep_pipeline.generation.modes import evaluating


def test_every_module_comes_back_in_its_own_mode() -> None:
    inside = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).eval()
    inside[1].train()
    outside = nn.Sequential(inside)
    before = [module.training for module in outside.modules()]
    assert before == [True, False, False, True]
    with pytest.raises(ZeroDivisionError), evaluating(outside):
        assert not any(module.training for module in outside.modules())
        raise ZeroDivisionError
    assert [module.training for module in outside.modules()] == before
