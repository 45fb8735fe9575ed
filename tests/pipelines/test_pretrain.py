import json
from pathlib import Path

import pandas as pd
import pytest
from kedro.config import OmegaConfigLoader

from sleep_pipeline.corpora.english import Corpus, read_corpus
from sleep_pipeline.language_model import embedded_path
from sleep_pipeline.pipelines.pretrain import nodes
from sleep_pipeline.pipelines.pretrain.nodes import plot_losses, train_vocabulary, write_model_card
from sleep_pipeline.pretraining.settings import PretrainSettings
from sleep_pipeline.settings import CONFIG_LOADER_ARGS


def _settings(root: Path, env: str) -> PretrainSettings:
    loader = OmegaConfigLoader(str(root / "conf"), env=env, **CONFIG_LOADER_ARGS)
    return PretrainSettings.model_validate(loader["parameters"]["pretrain"])


def test_the_file_of_settings_says_what_the_defaults_are(project_root: Path) -> None:
    assert _settings(project_root, "base") == PretrainSettings()


def test_the_shipped_model_has_the_shape_of_the_defaults_and_more_to_read(project_root: Path) -> None:
    shipped, base = _settings(project_root, "shipped"), _settings(project_root, "base")
    assert shipped.corpora
    assert shipped.steps * shipped.batch_tokens > 10 * base.steps * base.batch_tokens
    made = json.loads((embedded_path() / "manifest.json").read_text(encoding="utf-8"))
    assert shipped.architecture == base.architecture
    assert made["settings"]["architecture"] == base.architecture.model_dump()


def test_the_smoke_budget_is_a_smaller_model_in_a_folder_of_its_own(project_root: Path) -> None:
    smoke, base = _settings(project_root, "smoke"), _settings(project_root, "base")
    assert smoke.steps * smoke.batch_tokens < 0.1 * base.steps * base.batch_tokens
    assert smoke.architecture.hidden_size < base.architecture.hidden_size
    folders = set()
    for env in ("base", "smoke"):
        loader = OmegaConfigLoader(str(project_root / "conf"), env=env, **CONFIG_LOADER_ARGS)
        folders.add(loader["catalog"]["pretrained_model"]["filepath"])
    assert len(folders) == 2


def test_missing_real_text_is_an_error_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"books/\*\.txt"):
        train_vocabulary(PretrainSettings(corpora=["books/*.txt"]), tmp_path)


def test_the_plot_shows_every_step_and_a_running_mean() -> None:
    losses = pd.DataFrame({"step": range(1, 101), "loss": [5.0 - step / 50 for step in range(100)]})
    raw, smooth = plot_losses(losses).axes[0].lines
    assert list(raw.get_ydata()) == list(losses["loss"])
    assert smooth.get_ydata()[-1] == pytest.approx(losses["loss"].tail(2).mean())


def test_the_model_card_states_origin_digests_and_scores(tmp_path: Path) -> None:
    manifest = {
        "settings": PretrainSettings().model_dump(mode="json"),
        "corpora_sha256": {"a.txt": "abc123"},
        "fingerprint": "f00",
        "weights_sha256": "w00",
        "parameters": 2016960,
        "tokens": 13107200,
        "seconds": 2000,
        "git_commit": "c0ffee",
        "finished": "2030-01-01",
        "machine": "x86_64",
        "software": {"torch": "2.15", "transformers": "5"},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    score = {"value": 0.953, "low": 0.94, "high": 0.97, "samples": 300}
    english = {"perplexity": 41.2, "bits_per_byte": 1.9, "tokens": 1000}
    card = write_model_card(tmp_path, {"skills": {"needles": score}, "english": english})
    for part in ("2,016,960", "13,107,200", "a.txt", "abc123", "f00", "w00", "c0ffee", "| 95.3 | 94.0 to 97.0 | 300 |"):
        assert part in card
    assert "perplexity 41.2" in card
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"corpora_sha256": {}}))
    assert "made-up worlds alone" in write_model_card(tmp_path, {"skills": {"needles": score}})


def _corpus(folder: Path, number: int) -> Corpus:
    path = folder / f"{number}.txt"
    path.write_text(f"Note {number} is short.", encoding="utf-8")
    return read_corpus(path)


def test_of_little_text_nothing_may_be_held_out(tmp_path: Path) -> None:
    number = next(n for n in range(100) if not _corpus(tmp_path, n).of_split("test"))
    corpus = _corpus(tmp_path, number)
    assert nodes._english([corpus], "test") is None
    assert nodes._english([corpus], "train") is not None
    assert nodes._english([], "train") is None
