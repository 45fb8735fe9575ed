import sys
from typing import Any

import numpy as np
import pytest
import torch

from sleep_pipeline.baselines.embedding import BackboneEmbedder, SentenceEmbedder, nearest


def test_the_backbone_s_embedding_is_the_mean_over_the_text_alone(tiny_model: Any, tiny_tokenizer: Any) -> None:
    texts = ["a", "the river is long and cold today", "where is it"]
    found = BackboneEmbedder(tiny_model, tiny_tokenizer, layer=1, batch_size=2).embed(texts)
    for text, row in zip(texts, found, strict=True):
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = tiny_model(ids, output_hidden_states=True).hidden_states[1]
        np.testing.assert_allclose(row, states[0].mean(0), atol=1e-5)


def test_long_texts_are_cut(tiny_model: Any, tiny_tokenizer: Any) -> None:
    embedder = BackboneEmbedder(tiny_model, tiny_tokenizer, max_tokens=8)
    long, longer = embedder.embed(["river " * 50, "river " * 500])
    np.testing.assert_allclose(long, longer, atol=1e-6)


def test_nearest_looks_at_directions_from_the_mean() -> None:
    stored = np.array([[100, 1], [100, -1], [101, 0], [99, 0]], dtype=np.float32)
    queries = np.array([[100, 50], [90, 1]], dtype=np.float32)
    assert nearest(queries, stored, 2)[:, 0].tolist() == [0, 3]
    assert nearest(queries, stored, 9).shape == (2, 4)


def test_what_equals_the_mean_is_like_nothing_and_breaks_nothing() -> None:
    same = np.ones((3, 2), dtype=np.float32)
    assert nearest(same, same, 2).tolist() == [[0, 1]] * 3


def test_without_its_extra_the_sentence_embedder_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sleep-pipeline\[judges\]'"):
        SentenceEmbedder("some/model")
