import subprocess
import sys
from typing import Any

import pytest
from made_up_streams import stream

from sleep_pipeline.baselines.methods import METHODS, MethodSettings, make_method
from sleep_pipeline.baselines.running import run_stream
from sleep_pipeline.language_model import ModelLoadError

SETTINGS = MethodSettings.model_validate(
    {
        "seeding": {
            "rows": 4,
            "replay": {"stored_rows": 4},
            "optimizer": {"steps": 2, "precision": "fp32"},
            "imitation": {"max_new_tokens": 4},
        },
        "shots": 3,
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_lives_through_a_stream(tiny_model: Any, answering: Any, name: str) -> None:
    result = run_stream(make_method(name, tiny_model, answering, SETTINGS), stream())
    assert [len(answers) for answers in result.final] == [2, 2]
    assert result.stored[-1] > 0 and sum(result.seconds) > 0 and sum(result.tokens) > 0
    assert result.out_of_scope is not None and 0 <= result.out_of_scope.auroc <= 1


def test_an_unknown_method_is_refused_with_the_choice(tiny_model: Any, answering: Any) -> None:
    with pytest.raises(ValueError, match="there is no method 'nap'; choose one of icl, inca"):
        make_method("nap", tiny_model, answering, SETTINGS)


def test_a_sleeper_that_looks_up_no_examples_needs_no_sentence_model(tiny_model: Any, answering: Any) -> None:
    settings = SETTINGS.model_copy(update={"sentence_model": "./nowhere"})
    make_method("sleep", tiny_model, answering, settings)
    with pytest.raises((ModelLoadError, ModuleNotFoundError), match=r"no folder ./nowhere|sleep-pipeline\[judges\]"):
        make_method("inca", tiny_model, answering, settings)


def test_the_list_of_methods_loads_no_torch() -> None:
    code = "import sys, sleep_pipeline.baselines.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
