"""Nodes of the `pretrain` pipeline. torch is imported when a node runs, not when the pipeline is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleep_pipeline.corpora.english import Corpus, English, load_corpora
from sleep_pipeline.datasets import Pretrained
from sleep_pipeline.pretraining.settings import PretrainSettings
from sleep_pipeline.tracking import active_sink, log_figure
from sleep_pipeline.tracking.git import git_state

# Kedro evaluates the annotations of nodes when a command starts, so these stand for types whose import is slow.
Table = Any  # pandas.DataFrame
Plot = Any  # matplotlib.figure.Figure

_EXAMPLES_KEPT = 20


def _english(corpora: list[Corpus], split: Any) -> English | None:
    # Of little text nothing may be held out, and then no fit to it is told.
    some = split == "train" or any(corpus.of_split(split) for corpus in corpora)
    return English(corpora, split) if corpora and some else None


def train_vocabulary(pretrain: PretrainSettings, raw_folder: Path) -> Pretrained:
    """Learn the byte-level BPE from made-up conversations and the corpora, or take it from the model to start from."""
    from sleep_pipeline.language_model import load_model
    from sleep_pipeline.pretraining.tokenizer import train_tokenizer, vocabulary_texts

    if pretrain.start_from is not None:
        return Pretrained((load_model(pretrain.start_from)[1],))

    texts = vocabulary_texts(pretrain, _english(load_corpora(pretrain.corpora, raw_folder), "train"))
    shape = pretrain.architecture
    return Pretrained((train_tokenizer(texts, shape.vocab_size, shape.max_positions),))


def train_model(
    pretrain: PretrainSettings, raw_folder: Path, pretrain_tokenizer: Path, pretrain_progress_folder: Path
) -> tuple[Pretrained, Table]:
    """Train the model, or go on with the run that was cut short; the losses come as one row a step."""
    import pandas as pd
    from transformers import AutoTokenizer

    from sleep_pipeline.pretraining.batches import PackedBatches
    from sleep_pipeline.pretraining.model_card import describe_run
    from sleep_pipeline.pretraining.trainer import build_model, continued_model, fingerprint
    from sleep_pipeline.pretraining.trainer import pretrain as run_pretraining

    corpora = load_corpora(pretrain.corpora, raw_folder)
    tokenizer = AutoTokenizer.from_pretrained(pretrain_tokenizer)
    batches = PackedBatches(pretrain, tokenizer, _english(corpora, "train"))
    before: dict[str, Any] | None = None
    if pretrain.start_from is None:
        model = build_model(pretrain.architecture, tokenizer, pretrain.seed)
    else:
        model, before = continued_model(pretrain)
    digests = {corpus.name: corpus.sha256 for corpus in corpora}
    run = fingerprint(pretrain, digests, tokenizer, before)
    progress = run_pretraining(pretrain, batches, model, pretrain_progress_folder, run, active_sink())
    git = git_state(Path(__file__).parent)
    manifest = describe_run(pretrain, digests, run, progress, model, git.commit if git else None, before)
    losses = pd.DataFrame({"step": range(1, len(progress.losses) + 1), "loss": progress.losses})
    return Pretrained((model, tokenizer), manifest), losses


def plot_losses(pretrain_losses: Table) -> Plot:
    """Loss a step, faint, and its mean over a fiftieth of the run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    window = max(1, len(pretrain_losses) // 50)
    axes.plot(pretrain_losses["step"], pretrain_losses["loss"], color="tab:blue", alpha=0.25, linewidth=0.8)
    smooth = pretrain_losses["loss"].rolling(window, min_periods=1).mean()
    axes.plot(pretrain_losses["step"], smooth, color="tab:blue", label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="weighted loss (nats a token)", title="Pretraining")
    axes.grid(alpha=0.3)
    axes.legend()
    log_figure(figure, "pretrain_loss.png")
    return figure


def evaluate_model(
    pretrain: PretrainSettings, raw_folder: Path, pretrained_model: Path
) -> tuple[dict[str, Any], Table]:
    """Scores of all skills with 95 % intervals, fit to held-out English, and examples of the replies."""
    import pandas as pd

    from sleep_pipeline.evaluation.language import language_fit
    from sleep_pipeline.evaluation.skills import evaluate_skills
    from sleep_pipeline.hardware import pick_device
    from sleep_pipeline.language_model import load_model

    model, tokenizer = load_model(pretrained_model)
    model.to(pick_device(pretrain.device))
    reports = evaluate_skills(model, tokenizer, pretrain.evaluation_examples)
    metrics: dict[str, Any] = {
        "skills": {
            name: {
                "value": r.estimate.value,
                "low": r.estimate.low,
                "high": r.estimate.high,
                "samples": r.estimate.samples,
            }
            for name, r in reports.items()
        }
    }
    english = _english(load_corpora(pretrain.corpora, raw_folder), "test")
    if english:
        fit = language_fit(model, tokenizer, english.passages())
        metrics["english"] = {
            "perplexity": fit.perplexity,
            "bits_per_byte": fit.bits_per_byte,
            "tokens": fit.tokens,
        }
    active_sink().log_metrics({f"skill/{name}": r.estimate.value for name, r in reports.items()}, step=pretrain.steps)
    if english:
        active_sink().log_metrics({f"english/{k}": v for k, v in metrics["english"].items()}, step=pretrain.steps)
    rows = [
        {
            "skill": name,
            "prompt": json.dumps(example.prompt, ensure_ascii=False),
            "expected": example.answer,
            "reply": reply,
            "score": score,
        }
        for name, report in reports.items()
        for example, reply, score in report.graded[:_EXAMPLES_KEPT]
    ]
    return metrics, pd.DataFrame(rows)


def write_model_card(pretrained_model: Path, pretrain_metrics: dict[str, Any]) -> str:
    """The model card, made from the manifest and the scores."""
    from sleep_pipeline.datasets.pretrained import MANIFEST
    from sleep_pipeline.pretraining.model_card import model_card

    manifest = json.loads((pretrained_model / MANIFEST).read_text(encoding="utf-8"))
    return model_card(manifest, pretrain_metrics)
