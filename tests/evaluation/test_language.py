import math
from typing import Any

import pytest
import torch

from sleep_pipeline.evaluation.language import language_fit

TEXT = "The quiet harbour lay under a grey sky. " * 6


def test_the_fit_equals_a_token_by_token_reference(tiny_model: Any, tiny_tokenizer: Any) -> None:
    window = 16
    ids = tiny_tokenizer(TEXT)["input_ids"]
    nats, count = 0.0, 0
    for start in range(0, len(ids), window):
        prefix = [tiny_tokenizer.bos_token_id]
        for token in ids[start : start + window]:
            with torch.no_grad():
                logits = tiny_model(torch.tensor([prefix])).logits[0, -1].double()
            nats -= float(torch.log_softmax(logits, -1)[token])
            count += 1
            prefix.append(token)
    fit = language_fit(tiny_model, tiny_tokenizer, [TEXT], window=window)
    assert fit.tokens == count
    assert fit.perplexity == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert fit.bits_per_byte == pytest.approx(nats / math.log(2) / fit.bytes, rel=1e-5)
    assert fit.bytes == pytest.approx(len(TEXT.encode()), rel=0.1)


def test_a_short_window_of_the_model_is_kept_to(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = language_fit(tiny_model, tiny_tokenizer, [TEXT], window=15)
    monkeypatch.setattr(tiny_model.config, "max_position_embeddings", 16)
    assert language_fit(tiny_model, tiny_tokenizer, [TEXT]) == expected


def test_nothing_to_predict_is_an_error(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="nothing to predict"):
        language_fit(tiny_model, tiny_tokenizer, [])
