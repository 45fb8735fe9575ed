import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_streams import stream

from sleep_pipeline.baselines.embedding import BackboneEmbedder, SentenceEmbedder, nearest
from sleep_pipeline.baselines.methods import MethodSettings, make_method
from sleep_pipeline.baselines.running import run_stream
from sleep_pipeline.language_model import ModelNotFoundError, RemoteCodeError, UnsafeWeightsError


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


@pytest.fixture
def sentence_model(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A folder with a sentence-transformers model of our making: the tiny model's last states, averaged."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tiny_model.base_model.save_pretrained(tmp_path / "network")
    # With a chat template the library makes a conversation of every text.
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "network")
    network = Transformer(str(tmp_path / "network"))
    SentenceTransformer(modules=[network, Pooling(tiny_model.config.hidden_size)], device="cpu").save(
        str(tmp_path / "sentence")
    )
    return tmp_path / "sentence"


def test_a_sentence_model_embeds_as_it_says(sentence_model: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    found = SentenceEmbedder(str(sentence_model)).embed(["the river", "where\n is it"])
    for text, row in zip(["the river", "where is it"], found, strict=True):
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        with torch.no_grad():
            np.testing.assert_allclose(row, tiny_model.base_model(ids).last_hidden_state[0].mean(0), atol=1e-4)


def test_inca_sorts_by_a_sentence_model_that_the_settings_name(
    sentence_model: Path, tiny_model: Any, answering: Any
) -> None:
    settings = MethodSettings(sentence_model=str(sentence_model), top_k=1, shrinkage=0.9)
    result = run_stream(make_method("inca", tiny_model, answering, settings), stream())
    assert result.accuracy().value == 1.0


@pytest.mark.parametrize("name", ["sleep_context", "sleep_both"])
def test_sleep_finds_its_context_by_the_embedder_that_the_settings_name(
    tiny_model: Any, answering: Any, name: str
) -> None:
    settings = MethodSettings(layer=1, expert_rank=2, slots=2)
    sleep: Any = make_method(name, copy.deepcopy(tiny_model), answering, settings)
    inca: Any = make_method("inca", tiny_model, answering, settings)
    texts = ["the river", "where is it"]
    np.testing.assert_array_equal(sleep._embedder.embed(texts), inca._embedder.embed(texts))


def test_a_sentence_model_with_pickled_weights_is_refused(sentence_model: Path) -> None:
    for weights in sentence_model.rglob("*.safetensors"):
        weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(UnsafeWeightsError, match=r"has no \.safetensors weights"):
        SentenceEmbedder(str(sentence_model))


def test_a_sentence_model_with_a_module_of_its_own_is_refused(sentence_model: Path) -> None:
    modules = json.loads((sentence_model / "modules.json").read_text())
    (sentence_model / "own.py").write_text("raise SystemExit('remote code ran')")
    (sentence_model / "modules.json").write_text(json.dumps([modules[0], modules[1] | {"type": "own.Pooling"}]))
    with pytest.raises(RemoteCodeError, match="needs Python code that comes with the model"):
        SentenceEmbedder(str(sentence_model))


@pytest.mark.parametrize(("name", "told"), [("./nowhere", "there is no folder"), ("some/model", "HF_HUB_OFFLINE")])
def test_a_sentence_model_that_is_not_there_is_named(name: str, told: str) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ModelNotFoundError, match=f"{name}.*{told}|{told}.*{name}"):
        SentenceEmbedder(name)
