"""Frozen judges of whether two texts mean the same, the `r_sem` of paper.md eq. 4.

- `LikelihoodJudge`: the base model's own judgement; needs nothing but the model, the default for the embedded one.
- `EntailmentJudge`: a natural-language-inference classifier, both ways; the strictest that runs locally.
- `EmbeddingJudge`: sentence embeddings; fast, and blind to a wrong number in an otherwise equal sentence.
- `EndpointJudge`: a large model behind an OpenAI-compatible endpoint; the texts leave this process for it.
"""

from __future__ import annotations

import json
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sleep_pipeline.hardware import pick_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Trio = tuple[str, str, str]
"""A question (may be empty), one answer, and another."""


class Judge(Protocol):
    """Says of each `(question, answer, other answer)` whether the answers mean the same."""

    def agree(self, trios: Sequence[Trio]) -> list[bool]:
        """One verdict a trio, in order."""
        ...


class EmbeddingJudge:
    """Answers agree if the cosine of their sentence embeddings reaches a threshold.

    Args:
        model: name or folder of a sentence-transformers model; local files only unless `download`.
        threshold: least cosine, -1 to 1.
        download: whether the model may be fetched from a hub.

    Raises:
        ModuleNotFoundError: sentence-transformers is not installed.
    """

    def __init__(self, model: str, threshold: float = 0.85, download: bool = False) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the embedding judge needs sentence-transformers: pip install 'sleep-pipeline[judges]', or choose the "
                "likelihood judge"
            ) from error
        self._model: Any = SentenceTransformer(model, local_files_only=not download, trust_remote_code=False)
        self.threshold = threshold

    def agree(self, trios: Sequence[Trio]) -> list[bool]:
        """See `Judge`."""
        texts = [answer for _, one, other in trios for answer in (one, other)]
        vectors = self._model.encode(texts, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
        cosines = (vectors[0::2] * vectors[1::2]).sum(-1)
        return [value >= self.threshold for value in cosines.tolist()]


class EntailmentJudge:
    """Answers agree if each entails the other, each read after the question.

    Args:
        model: a sequence classifier that has a label named like "entailment".
        tokenizer: of that model.
        threshold: least probability of entailment in each direction.
        batch_size: pairs at a time.

    Raises:
        ValueError: the model has no such label.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        threshold: float = 0.5,
        batch_size: int = 32,
    ) -> None:
        labels = {str(label).lower(): int(index) for index, label in model.config.id2label.items()}
        fitting = [index for label, index in labels.items() if label.startswith("entail")]
        if len(fitting) != 1:
            raise ValueError(
                f"the entailment judge's model has the labels {sorted(labels)}, and not one that is entailment: choose "
                "a model for natural language inference"
            )
        self._model, self._tokenizer = model.eval(), tokenizer
        self._entailment = fitting[0]
        self.threshold, self.batch_size = threshold, batch_size

    @classmethod
    def load(
        cls, name_or_path: str, threshold: float = 0.5, download: bool = False, device: str = "auto"
    ) -> EntailmentJudge:
        """Load the classifier from safetensors onto a device; local files only unless `download`."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        local: dict[str, Any] = {"local_files_only": not download, "trust_remote_code": False}
        model = AutoModelForSequenceClassification.from_pretrained(name_or_path, use_safetensors=True, **local)
        model.to(pick_device(device))
        return cls(model, AutoTokenizer.from_pretrained(name_or_path, **local), threshold)

    def agree(self, trios: Sequence[Trio]) -> list[bool]:
        """See `Judge`."""
        import torch

        pairs = []
        for question, one, other in trios:
            first, second = (f"{question} {answer}".strip() for answer in (one, other))
            pairs += [(first, second), (second, first)]
        entailed: list[bool] = []
        for start in range(0, len(pairs), self.batch_size):
            premises, hypotheses = zip(*pairs[start : start + self.batch_size], strict=True)
            inputs = self._tokenizer(
                list(premises), list(hypotheses), padding=True, truncation=True, return_tensors="pt"
            ).to(self._model.device)
            with torch.inference_mode():
                shares = self._model(**inputs).logits.softmax(-1)[:, self._entailment]
            entailed += (shares >= self.threshold).tolist()
        return [there and back for there, back in zip(entailed[0::2], entailed[1::2], strict=True)]


_VERDICT_PROMPT = (
    "Do both answers mean the same? Differences of wording do not matter; a different name, number, date, place or "
    "negation does. Reply with the single word yes or no.\n\n{question}Answer 1: {one}\nAnswer 2: {other}"
)


class EndpointJudge:
    """Asks a model behind an OpenAI-compatible chat endpoint, at temperature 0.

    The answers are sent to that endpoint: nothing is unless its address is given.

    Args:
        url: up to and with the version, such as `http://localhost:8000/v1`.
        model: name of the model there.
        key_variable: environment variable that holds the key; no key is sent if it is not set.
        timeout: seconds a question.

    Raises:
        ConnectionError: from `agree`, where the endpoint cannot be reached or answers something else.
    """

    def __init__(self, url: str, model: str, key_variable: str = "OPENAI_API_KEY", timeout: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the judge's url is {url!r}; give one that starts with http:// or https://")
        self._url, self._model, self._timeout = url.rstrip("/") + "/chat/completions", model, timeout
        self._key_variable = key_variable

    def agree(self, trios: Sequence[Trio]) -> list[bool]:
        """See `Judge`."""
        return [self._ask(*trio) for trio in trios]

    def _ask(self, question: str, one: str, other: str) -> bool:
        asked = f"Question: {question}\n" if question else ""
        body = {
            "model": self._model,
            "temperature": 0,
            "max_tokens": 8,
            "messages": [
                {"role": "user", "content": _VERDICT_PROMPT.format(question=asked, one=one, other=other)},
            ],
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                reply = json.load(response)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, TimeoutError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ConnectionError(
                f"the judge at {self._url} did not answer ({error}); check that it runs, its model {self._model!r} and "
                f"the key in {self._key_variable}"
            ) from error
        verdict = re.search(r"\b(yes|no)\b", str(reply), re.I)
        if verdict is None:
            raise ConnectionError(
                f"the judge at {self._url} said {reply!r} where yes or no was asked for; name a model that follows "
                "instructions and does not think aloud first"
            )
        return verdict[0].lower() == "yes"


@dataclass(frozen=True)
class Calibration:
    """A threshold and how well it does on the labelled pairs that it was chosen on, or on others.

    Attributes:
        threshold: least score of a pair that agrees.
        sensitivity: share of the pairs that mean the same which are found.
        specificity: share of the others which are rejected.
    """

    threshold: float
    sensitivity: float
    specificity: float


class LikelihoodJudge:
    """The base model's own judgement: does knowing one answer make the other one likelier, both ways?

    The score of a trio is the smaller of both directions' gains: by how much the mean log-probability a token (nats) of
    one answer to the question rises if the other answer is the text to remember. How unlikely an answer's form is, such
    as a whole sentence where a name is usual, is so no objection. Answers agree if the score reaches the threshold; its
    default was chosen on made-up worlds with the embedded model (`benchmarks/judges.py` says how well it does there).

    Args:
        model: a causal LM; never trained here.
        tokenizer: with a chat template.
        threshold: least score; `calibrate` finds it.
        instruction: asked where a trio has no question.
        batch_size: conversations at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        threshold: float = 1.0,
        instruction: str = "Tell the same in other words.",
        batch_size: int = 64,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.threshold, self.instruction, self.batch_size = threshold, instruction, batch_size

    def agree(self, trios: Sequence[Trio]) -> list[bool]:
        """See `Judge`."""
        return [score >= self.threshold for score in self.scores(trios)]

    def scores(self, trios: Sequence[Trio]) -> list[float]:
        """The smaller direction's gain, nats a token; 0 where one answer tells nothing of the other."""
        from sleep_pipeline.generation.likelihood import encode_reply, reply_log_probs

        conversations = []
        gains = [-math.inf] * (2 * len(trios))
        for number, (question, one, other) in enumerate(trios):
            for way, (known, said) in enumerate(((one, other), (other, one))):
                without = [
                    {"role": "user", "content": question or self.instruction},
                    {"role": "assistant", "content": said.strip()},
                ]
                told = [{"role": "system", "content": f"{question} {known}".strip()}, *without]
                try:
                    encode_reply(self._tokenizer, told)
                except ValueError:
                    # What a student says may be anything, marks of the template among it; no answer is likely then.
                    continue
                conversations.append((2 * number + way, told, without))
        both = [one for _, told, without in conversations for one in (told, without)]
        found = reply_log_probs(self._model, self._tokenizer, both, self.batch_size)
        means = [sum(tokens) / len(tokens) for tokens in found]
        for (place, *_), knowing, not_knowing in zip(conversations, means[0::2], means[1::2], strict=True):
            gains[place] = knowing - not_knowing
        return [min(pair) for pair in zip(gains[0::2], gains[1::2], strict=True)]

    def calibrate(self, trios: Sequence[Trio], same: Sequence[bool]) -> Calibration:
        """Set the threshold to where sensitivity plus specificity is largest on labelled trios, and report both.

        Raises:
            ValueError: the labels are all the same.
        """
        scores = self.scores(trios)
        yes = sorted(score for score, label in zip(scores, same, strict=True) if label)
        no = sorted(score for score, label in zip(scores, same, strict=True) if not label)
        if not yes or not no:
            raise ValueError(f"{len(yes)} of {len(scores)} pairs mean the same; give some of either kind")
        candidates = sorted({*scores, max(scores) + 1})
        self.threshold = max(candidates, key=lambda at: _rates(yes, no, at)[0] + _rates(yes, no, at)[1])
        return Calibration(self.threshold, *_rates(yes, no, self.threshold))

    def measure(self, trios: Sequence[Trio], same: Sequence[bool]) -> Calibration:
        """How well the present threshold does on other labelled trios."""
        scores = self.scores(trios)
        yes = [score for score, label in zip(scores, same, strict=True) if label]
        no = [score for score, label in zip(scores, same, strict=True) if not label]
        return Calibration(self.threshold, *_rates(yes, no, self.threshold))


def _rates(yes: Sequence[float], no: Sequence[float], at: float) -> tuple[float, float]:
    return sum(score >= at for score in yes) / len(yes), sum(score < at for score in no) / len(no)
