"""The byte-level BPE tokenizer of the embedded model and its chat template."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sleep_pipeline.corpora.english import English
from sleep_pipeline.corpora.mixture import training_skills
from sleep_pipeline.pretraining.settings import PretrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = [PAD, BEGIN, END, *(f"<|{role}|>" for role in ROLES)]

# The generation block marks what the assistant says, for trainers that learn from answers only.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' + message['role'] + ' is unknown; use system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; digits stay single, so that numbers are read digit by digit.

    A space is put before every text and every line, and taken away again when tokens are decoded. So a name is the
    same tokens wherever it stands, and a model that answers with it copies instead of spelling it anew.

    Args:
        texts: what to learn the merges from.
        vocab_size: size with the 6 special tokens.
        max_length: longest input of the model, in tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace("\n", "\n ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def vocabulary_texts(settings: PretrainSettings, english: English | None) -> Iterator[str]:
    """What the vocabulary is learned from: made-up conversations of all skills alike and, about as much, real text."""
    rng = random.Random(f"vocabulary/{settings.seed}")
    skills = list(training_skills().values())
    for _ in range(settings.tokenizer_documents):
        yield "\n".join(message["content"] for message in rng.choice(skills)(rng, "train").messages)
    if english:
        for _ in range(settings.tokenizer_documents // 10):
            yield english.passage(rng)


class ConversationEncoder:
    """Encodes conversations as the chat template does, thousands a second, with the assistant's tokens marked.

    Args:
        tokenizer: made by `train_tokenizer`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._roles = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES}
        self._end = tokenizer.convert_tokens_to_ids(END)
        self._begin = tokenizer.convert_tokens_to_ids(BEGIN)

    def conversations(self, batch: Sequence[Sequence[dict[str, str]]]) -> list[tuple[list[int], list[bool]]]:
        """(token ids, whether the assistant says it) of each conversation."""
        contents = [message["content"] for messages in batch for message in messages]
        encoded = iter(self._backend.encode_batch(contents, add_special_tokens=False))
        result = []
        for messages in batch:
            ids: list[int] = []
            said: list[bool] = []
            for message in messages:
                content = [*next(encoded).ids, self._end]
                ids += [self._roles[message["role"]], *content]
                said += [False] + [message["role"] == "assistant"] * len(content)
            result.append((ids, said))
        return result

    def text(self, text: str) -> list[int]:
        """Token ids of running text, from a begin mark to an end mark."""
        return [self._begin, *self._backend.encode(text, add_special_tokens=False).ids, self._end]
