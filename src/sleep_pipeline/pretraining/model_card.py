"""The record of a pretraining run and the model card that is made from it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sleep_pipeline.pretraining.checkpoint import Progress
from sleep_pipeline.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SKILL_NAMES = {
    "question_answering": "answer a question about the text (exact match)",
    "closed_book": "the same questions without the text (exact match)",
    "unanswerable": "say that the text does not tell (exact match)",
    "no_context": "say that it does not know without a text (exact match)",
    "question_writing": "write questions with answers (share of pairs that are right)",
    "rewriting": "rewrite the text (F1 of the facts)",
    "implications": "list what follows (F1 of the facts)",
    "summarising": "summarise (all subjects and kinds of facts)",
    "needles": "find one of 32 keys (exact match)",
    "classification": "classify, 5 classes of 4 examples (exact match)",
    "translation": "translate with a lexicon in the text (exact match)",
    "stories": "follow a story of people and things (exact match)",
    "arithmetic": "add and subtract in steps (exact match)",
    "grids": "continue a 1-D grid pattern (exact match)",
}


def describe_run(
    settings: PretrainSettings,
    corpora: dict[str, str],
    fingerprint: str,
    progress: Progress,
    model: PreTrainedModel,
    commit: str | None,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that tells where a pretrained model comes from, as plain JSON.

    Args:
        settings: of the run.
        corpora: file name -> SHA-256 of every corpus that was read.
        fingerprint: made by `trainer.fingerprint`.
        progress: how the run ended.
        model: as trained.
        commit: the code's git commit, if known.
        before: the same of the model that the run started from, if it did not start from random weights.
    """
    from sleep_pipeline.pretraining.trainer import weights_digest

    return {
        "kind": "pretrained language model",
        "settings": settings.model_dump(mode="json"),
        "corpora_sha256": corpora,
        "fingerprint": fingerprint,
        "weights_sha256": weights_digest(model),
        "parameters": model.num_parameters(),
        "tokens": progress.tokens,
        "seconds": round(progress.seconds),
        "final_loss": sum(progress.losses[-10:]) / len(progress.losses[-10:]),
        "started_from": before,
        "git_commit": commit,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": progress.machine["machine"],
        "software": {name: version for name, version in progress.machine.items() if name != "machine"},
    }


def model_card(manifest: dict[str, Any], metrics: dict[str, Any]) -> str:
    """A model card in Markdown with the front matter that hubs read.

    Args:
        manifest: made by `describe_run`.
        metrics: `skills` (name -> value, low, high, samples) and, where corpora were read, `english`.
    """
    settings, shape = manifest["settings"], manifest["settings"]["architecture"]
    rows = []
    for name, score in metrics["skills"].items():
        value, low, high = (f"{100 * score[key]:.1f}" for key in ("value", "low", "high"))
        rows.append(f"| {_SKILL_NAMES.get(name, name)} | {value} | {low} to {high} | {score['samples']} |")
    weights = ", ".join(f"{name} {weight:g}" for name, weight in settings["mixture"]["weights"].items())
    software = manifest["software"]
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded language model of sleep-pipeline

A Qwen 3 of {manifest["parameters"]:,} parameters ({shape["num_layers"]} layers, width {shape["hidden_size"]},
{shape["num_heads"]} heads, {shape["num_kv_heads"]} key-value heads, vocabulary {shape["vocab_size"]},
window {shape["max_positions"]}, trained on rows of up to {settings["row_lengths"][-1]} tokens) that reads a short text
in its system turn and does things with it. It knows nothing of the world and is no assistant: it exists so that a
whole night of sleep can be seen on a laptop in minutes.

Form of a conversation: system = the text to remember, user = question or instruction, assistant = answer.
Weights are fp32 safetensors; `AutoModelForCausalLM.from_pretrained` loads them without any code of ours.

## What it was trained on

{_earlier(manifest)}{manifest["tokens"]:,} tokens in {settings["steps"]} steps of {settings["batch_tokens"]}, seed \
{settings["seed"]};
{manifest["seconds"] // 60} minutes on {manifest["machine"]} (torch {software["torch"]}, transformers
{software["transformers"]}), finished {manifest["finished"]}, commit `{manifest["git_commit"]}`.

Made-up worlds and puzzles from `sleep_pipeline.corpora`, drawn anew for every batch. Shares of the made-up
tokens: {weights}.

{_corpora(manifest)}
Digest of the run (settings, corpora, tokenizer): `{manifest["fingerprint"]}`.
Digest of the weights: `{manifest["weights_sha256"]}`.

## What it can do

Held-out examples: names, subjects and wordings that training never showed; greedy decoding; 95 % intervals
(Wilson for exact match, bootstrap for shares). One training run, one seed: the intervals are over examples.

| skill | score (%) | interval | examples |
|---|---|---|---|
{chr(10).join(rows)}

{_english(metrics)}
## Limits

The text must be short, its facts plain, and questions close to the wordings of `phrasings.yml`. It repeats
what the text says, true or not. Its English is a child's at best.
"""


def _earlier(manifest: dict[str, Any]) -> str:
    """What is known of the model that the run started from; nothing for random weights."""
    before = manifest.get("started_from")
    if not before:
        return ""
    digest = before["weights_sha256"]
    if "tokens" not in before:
        return f"It went on from a model whose making is not recorded (weights `{digest}`). Then:\n\n"
    weights = ", ".join(f"{name} {share:g}" for name, share in before["settings"]["mixture"]["weights"].items())
    first = "Next" if before.get("started_from") else "First"
    return (
        f"{_earlier(before)}{first} {before['tokens']:,} tokens in {before['settings']['steps']} steps, seed\n"
        f"{before['settings']['seed']}, {before['seconds'] // 60} minutes on {before['machine']}, finished\n"
        f"{before['finished']}, commit `{before['git_commit']}` (weights `{digest}`), with the shares\n"
        f"{weights}. Then:\n\n"
    )


def _corpora(manifest: dict[str, Any]) -> str:
    digests = manifest["corpora_sha256"]
    if not digests:
        return "No real text: made-up worlds alone.\n"
    share = 100 * manifest["settings"]["mixture"]["english_share"]
    rows = "\n".join(f"| {name} | `{digest}` |" for name, digest in digests.items())
    return (
        f"Real English, {share:.0f} % of the tokens and more where rows had room, from these files\n"
        f"(SHA-256 as they lay on disk):\n\n| file | SHA-256 |\n|---|---|\n{rows}\n"
    )


def _english(metrics: dict[str, Any]) -> str:
    fit = metrics.get("english")
    if not fit:
        return ""
    return (
        f"Held-out English: perplexity {fit['perplexity']:.1f} a token, {fit['bits_per_byte']:.3f} bits a byte, over\n"
        f"{fit['tokens']:,} tokens of passages chosen by a hash of their words.\n"
    )
