"""Texts as vectors: by the backbone's own hidden states, or by a sentence-transformers model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sleep_pipeline.evaluation.classification import one_line
from sleep_pipeline.generation.modes import evaluating
from sleep_pipeline.language_model import ModelNotFoundError, explained, no_safetensors, remote_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into vectors `[texts, d]`."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row a text, in order."""
        ...


class BackboneEmbedder:
    """Mean of a causal LM's hidden states over a text's tokens.

    Args:
        model: a causal LM; frozen as it is now if nobody trains it.
        tokenizer: its own.
        layer: which hidden states, 0 for the embeddings, -1 for the last; None for the middle of the stack.
        max_tokens: where a text is cut.
        batch_size: texts at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layer: int | None = None,
        max_tokens: int = 256,
        batch_size: int = 64,
    ) -> None:
        self.model, self._tokenizer = model, tokenizer
        self.layer = model.config.get_text_config().num_hidden_layers // 2 if layer is None else layer
        self.max_tokens, self.batch_size = max_tokens, batch_size

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder`."""
        import torch

        encoded = [
            self._tokenizer(one_line(text), truncation=True, max_length=self.max_tokens)["input_ids"] for text in texts
        ]
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        found: list[Any] = [None] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            padded = self._tokenizer.pad(
                {"input_ids": [encoded[index] for index in batch]}, padding_side="right", return_tensors="pt"
            ).to(self.model.device)
            with evaluating(self.model), torch.inference_mode():
                output = self.model(**padded, output_hidden_states=True, use_cache=False, logits_to_keep=1)
            mask = padded["attention_mask"][..., None]
            sums = (output.hidden_states[self.layer].float() * mask).sum(1) / mask.sum(1)
            for index, row in zip(batch, sums.cpu().numpy(), strict=True):
                found[index] = row
        return np.stack(found)


class SentenceEmbedder:
    """A sentence-transformers model.

    Its weights are safetensors and its modules those of the library: other files are not fetched, and a folder that
    needs them is refused.

    Args:
        model: a folder, or a name on the hub, which is fetched unless HF_HUB_OFFLINE is set.

    Raises:
        ModuleNotFoundError: sentence-transformers is not installed.
        ModelLoadError: nothing is there that the library can load, or the hub cannot be reached.
        UnsafeWeightsError: weights are not safetensors.
        RemoteCodeError: a module is not one of the library's.
    """

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the sentence embedder needs sentence-transformers: pip install 'sleep-pipeline[judges]', or take the "
                "backbone's own embeddings"
            ) from error
        folder = _sentence_folder(model)
        try:
            self._model: Any = SentenceTransformer(
                str(folder), local_files_only=True, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        except (OSError, ValueError) as error:
            raise explained(error, model) from error

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder`."""
        rows = self._model.encode([one_line(text) for text in texts], convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(rows, dtype=np.float32)


def _sentence_folder(model: str) -> Path:
    """The folder of a sentence-transformers model that holds nothing unsafe which would be read."""
    from huggingface_hub import snapshot_download

    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
            raise ModelNotFoundError(f"there is no folder {model}; correct the path or give a hub name")
        try:
            folder = Path(snapshot_download(model, allow_patterns=_SENTENCE_FILES))
        except (OSError, ValueError) as error:
            raise explained(error, model) from error
    modules = folder / "modules.json"
    if not modules.is_file():
        raise ModelNotFoundError(
            f"{model} holds no modules.json; give a folder that SentenceTransformer.save wrote, or such a name"
        )
    for module in json.loads(modules.read_text(encoding="utf-8")):
        # Before release 6 the library imports such a class from a local folder without being told to trust it.
        if not module["type"].startswith("sentence_transformers."):
            raise remote_code(model)
        own = folder / module["path"]
        if (own / "pytorch_model.bin").exists() and not any(own.glob("*.safetensors")):
            raise no_safetensors(model)
    return folder


_SENTENCE_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""Settings, weights, vocabularies; no pickle and no code."""


def nearest(queries_QD: Vectors, stored_ND: Vectors, count: int) -> NDArray[np.int64]:
    """Places of the most similar stored vectors of each query, best first, `[queries, count]`.

    By cosine about the mean of what is stored: hidden states of a language model share a large common part, which
    would make all cosines alike.
    """
    mean = stored_ND.mean(0)

    def directions(rows: Vectors) -> Vectors:
        centred = rows - mean
        return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)

    cosines = directions(queries_QD) @ directions(stored_ND).T
    return np.argsort(-cosines, axis=-1, kind="stable")[:, :count]
