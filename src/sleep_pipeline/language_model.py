"""Loading a causal language model with its tokenizer: the embedded one, a folder, or one from a hub."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from sleep_pipeline.night_number import project_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"


class ModelLoadError(RuntimeError):
    """A model cannot be loaded as asked; the message says what is wrong and what to do."""


class ModelNotFoundError(ModelLoadError):
    """Neither a folder nor a reachable hub repository of that name holds a model."""


class UnsafeWeightsError(ModelLoadError):
    """The model's weights are in no safetensors file."""


class RemoteCodeError(ModelLoadError):
    """The model needs Python code of its own repository to be executed."""


class ChatTemplateError(ModelLoadError):
    """The tokenizer has no chat template, or none that a night can work with."""


def embedded_path() -> Path:
    """Folder of the language model that ships with this package."""
    return Path(str(resources.files("sleep_pipeline").joinpath("embedded")))


def place_of(name_or_path: str | Path) -> str:
    """A folder where there is one, below the working directory or the project; else the name as it is."""
    if str(name_or_path) == EMBEDDED:
        return str(embedded_path())
    below = project_folder() / Path(name_or_path).expanduser()
    return str(below) if below.is_dir() and not Path(name_or_path).is_dir() else str(name_or_path)


def load_model(
    name_or_path: str | Path = EMBEDDED,
    *,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer, ready for batched chat: eval mode, a pad token, padding on the left.

    Args:
        name_or_path: "embedded", a folder written by `save_pretrained`, or a name on the hub.
        dtype: of the weights, as `transformers` takes it; "auto" is the dtype in which they were saved.
        trust_remote_code: run Python code that the model's repository brings; off unless you have read that code.

    Raises:
        ModelNotFoundError: nothing is there, or the hub cannot be reached.
        UnsafeWeightsError: the weights are not safetensors.
        RemoteCodeError: the model needs code of its own and `trust_remote_code` is off.
        ChatTemplateError: the tokenizer has no chat template, or none that a night can work with.
        ModelLoadError: weights are missing or damaged, or the tokenizer or a mark of its template is another model's.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer(name_or_path, trust_remote_code=trust_remote_code)
    name = place_of(name_or_path)
    _check_folder(name, str(name_or_path))
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        model, loading = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelLoadError(f"a file of weights of {name_or_path} is damaged ({error}); fetch it again") from error
    except (OSError, ValueError) as error:
        raise explained(error, str(name_or_path)) from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelLoadError(
            f"{name_or_path} lacks {len(missing)} of its weights, such as {missing[0]}, which would be random numbers; "
            "fetch or save the whole model again (save_pretrained of the causal LM, not of the model inside it)"
        )
    _check_vocabulary(model, tokenizer, str(name_or_path))
    _end_replies(model, tokenizer)
    return model.eval(), tokenizer


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: str) -> None:
    """Make sure that the model has a row for every token that a night gives it; on a GPU one too many ends all.

    Raises:
        ModelLoadError: the tokenizer, or a mark of the chat template, is another model's.
    """
    from sleep_pipeline.generation.likelihood import encode_reply

    # Some tokenizers add a token that their model has no row for, such as one that stands for pictures.
    known = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > known:
        raise ModelLoadError(
            f"the tokenizer of {asked} has {tokenizer.vocab_size} tokens and the model knows {known}: it is another "
            "model's; put the model's own files beside the weights"
        )
    ids, _ = encode_reply(tokenizer, _EXAMPLE)
    if (most := max(ids)) >= known:
        raise ModelLoadError(
            f"the chat template of {asked} writes {tokenizer.convert_ids_to_tokens(most)!r}, the token {most}, and the "
            f"model knows {known}, from 0 on: it was never trained with this template; put the model's own tokenizer "
            "and chat template beside the weights"
        )
    # A token for padding that was added to the tokenizer alone, as many who fine-tune do.
    if tokenizer.pad_token_id >= known:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ids[-1])
    settings = model.generation_config
    if settings is not None and (settings.pad_token_id is None or settings.pad_token_id >= known):
        settings.pad_token_id = tokenizer.pad_token_id


def _end_replies(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let replies end where the chat template ends them, which some models' settings do not name."""
    settings = model.generation_config
    if settings is None:
        return
    named = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    ends = [token for token in named if token is not None]
    if (end := _example_reply(tokenizer)[-1]) not in (*ends, tokenizer.eos_token_id):
        settings.eos_token_id = [*ends, end]


def load_tokenizer(name_or_path: str | Path = EMBEDDED, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a causal LM alone, with a pad token and padding on the left; see `load_model`.

    Raises:
        ModelNotFoundError: nothing is there, or the hub cannot be reached.
        RemoteCodeError: the model needs code of its own and `trust_remote_code` is off.
        ChatTemplateError: the tokenizer has no chat template, or none that a night can work with.
        ModelLoadError: the tokenizer does not read back what it was given.
    """
    from transformers import AutoTokenizer

    name = place_of(name_or_path)
    _check_folder(name, str(name_or_path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise explained(error, str(name_or_path)) from error
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            f"the tokenizer of {name_or_path} has no chat template; use the instruction-tuned variant of the model, or "
            "save a chat_template.jinja beside its tokenizer"
        )
    tokenizer.chat_template = without_today(without_thinking(tokenizer.chat_template))
    _check_tokens(tokenizer, str(name_or_path))
    _take_system_turns(tokenizer, str(name_or_path))
    _check_replies(tokenizer, str(name_or_path))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(_example_reply(tokenizer)[-1])
    tokenizer.padding_side = "left"
    return tokenizer


_NO_THINKING = "{%- set enable_thinking = false -%}"


def without_thinking(template: str | dict[str, str]) -> str | dict[str, str]:
    """The chat template of a model that thinks aloud by default, so that it answers at once.

    Answers are what is compared and learned; thoughts before them would be cut off, or learned with them.
    """
    if isinstance(template, dict):
        return {name: str(without_thinking(one)) for name, one in template.items()}
    if "enable_thinking" not in template or _NO_THINKING in template:
        return template
    return _NO_THINKING + template


_ONE_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def without_today(template: str | dict[str, str]) -> str | dict[str, str]:
    """The chat template of a model that is told the date, with one date for ever, the one that Llama's falls back to.

    A night that goes on the next day would ask other prompts than it began with, and lessons that are learned again
    after months would stand in prompts that nobody asks any more.
    """
    if isinstance(template, dict):
        return {name: str(without_today(one)) for name, one in template.items()}
    if "strftime_now" not in template or _ONE_DAY in template:
        return template
    return _ONE_DAY + template


_EXAMPLE = [
    {"role": "system", "content": "It rains."},
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "content": "Wet."},
]


def _example_reply(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a reply, its end mark among them.

    Raises:
        ValueError: see `encode_reply`.
    """
    from sleep_pipeline.generation.likelihood import encode_reply

    ids, start = encode_reply(tokenizer, _EXAMPLE)
    return ids[start:]


def _check_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make sure that the tokenizer reads back what it was given, as one without its file would not."""
    text = " ".join(turn["content"] for turn in _EXAMPLE)
    read = str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))
    if "".join(read.split()).casefold() != "".join(text.split()).casefold():
        raise ModelLoadError(
            f"the tokenizer of {name} reads {text!r} back as {read!r}: its file, such as tokenizer.json, is missing or "
            "another model's; put it beside the weights"
        )


def _check_replies(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make sure that a reply can be told from its prompt and ends, with the memory in the first user turn if need be.

    Raises:
        ChatTemplateError: the template writes a prompt differently once its reply is there, as those of models do that
            always think aloud, writes more into a reply than was said, or does not end it.
    """
    given = tokenizer.chat_template
    problem = _fault_of_replies(tokenizer)
    if problem and isinstance(given, str) and not given.startswith(_FOLDING):
        # Some write the system turn's text before the last user turn, which is another one once there is a reply.
        tokenizer.chat_template = _FOLDING + given
        if not _fault_of_replies(tokenizer):
            return
        tokenizer.chat_template = given
    if problem:
        raise ChatTemplateError(f"the chat template of {name} {problem}")


def _fault_of_replies(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a night could not work with, and the remedy; empty if nothing is wrong."""
    try:
        reply = _example_reply(tokenizer)
    except ValueError:
        return (
            "writes a prompt differently once its reply is there, as those of models do that always think aloud: use a "
            "variant of the model that answers at once, or save a chat_template.jinja beside its tokenizer whose "
            "prompts end where a reply begins"
        )
    marks = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    if reply[-1] not in marks and reply[-1] != tokenizer.eos_token_id:
        return (
            f"ends a reply without a special token ({tokenizer.decode(reply)!r}), so that the model would not learn to "
            "end one: save a chat_template.jinja beside its tokenizer that closes each of the assistant's turns with "
            f"its end token, such as {tokenizer.eos_token}"
        )
    said = str(tokenizer.decode(reply, skip_special_tokens=True)).strip()
    if said != (wanted := _EXAMPLE[-1]["content"]):
        remedy = "that writes the reply's heading where add_generation_prompt asks for it"
        if said.startswith(wanted):
            remedy = "that ends it with the end token alone, or mark what stands before that as special"
        return (
            f"makes the reply {wanted!r} {said!r}, which the model would learn to say: save a chat_template.jinja "
            f"beside its tokenizer {remedy}"
        )
    return ""


_FOLDING = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- if messages | length > 1 and messages[1]['role'] == 'user' -%}"
    "{%- set text = messages[0]['content'] + '\\n\\n' + messages[1]['content'] -%}"
    "{%- set messages = [{'role': 'user', 'content': text}] + messages[2:] -%}"
    "{%- else -%}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content']}] + messages[1:] -%}"
    "{%- endif -%}{%- endif -%}"
)


def _take_system_turns(tokenizer: PreTrainedTokenizerBase, asked: str) -> None:
    """See to it that the chat template writes the text of a system turn, in the first user turn if need be.

    Raises:
        ChatTemplateError: it does neither.
    """
    if _writes_system_turns(tokenizer) or not isinstance(tokenizer.chat_template, str):
        return
    given = tokenizer.chat_template
    tokenizer.chat_template = _FOLDING + given
    if not _writes_system_turns(tokenizer):
        tokenizer.chat_template = given
        raise ChatTemplateError(
            f"the chat template of {asked} writes neither a system turn, where a memory stands while the model reads "
            "it, nor that text before the user's; save another chat_template.jinja beside the tokenizer"
        )


def _writes_system_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    from jinja2 import TemplateError

    marks = ("\u2042 memory", "\u2042 question")
    turns = [{"role": role, "content": mark} for role, mark in zip(("system", "user"), marks, strict=True)]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError:
        return False
    return all(mark in text for mark in marks)


def _check_folder(path: str, asked: str) -> None:
    """Find out from a local folder's files, before anything is loaded, whether it can be loaded safely."""
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or asked.startswith((".", "~")) or asked.count("/") > 1:
            raise ModelNotFoundError(f"there is no folder {asked}; correct the path or give a hub name")
        return
    config = folder / "config.json"
    if not config.is_file():
        raise ModelNotFoundError(
            f"{asked} holds no config.json; give the folder that save_pretrained wrote (of an adapter: load its base "
            "model first)"
        )
    for file in (config, folder / "tokenizer.json"):
        try:
            whole = not file.is_file() or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
        except ValueError as error:
            raise ModelLoadError(f"{file} is damaged ({error}); fetch it again") from error
        if not whole:
            raise ModelLoadError(f"{file} is damaged, since it holds no object; fetch it again")
    if not any(folder.glob("*.safetensors")):
        raise no_safetensors(asked)


def remote_code(asked: str) -> RemoteCodeError:
    """What to do about a model that brings code."""
    return RemoteCodeError(
        f"{asked} needs Python code that comes with the model; read that code, then pass trust_remote_code=True (in a "
        "night: machine.trust_remote_code=true)"
    )


def no_safetensors(asked: str) -> UnsafeWeightsError:
    """What to do about a model whose weights are in other files."""
    return UnsafeWeightsError(
        f"{asked} has no .safetensors weights, and other formats can run code when they are read; convert it on a "
        "machine that you can afford to lose, or take a revision with safetensors"
    )


def explained(error: Exception, asked: str) -> ModelLoadError:
    """The error of `transformers` in our words, by what it says."""
    text = str(error)
    if "trust_remote_code" in text:
        return remote_code(asked)
    if "safetensors" in text:
        return no_safetensors(asked)
    if "gated repo" in text or "private repository" in text:
        return ModelNotFoundError(
            f"{asked} is open to those alone who were let in: accept its licence on its page on the hub, then log in "
            "with `hf auth login`, or set HF_TOKEN"
        )
    why = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if "backend tokenizer" in text or "tiktoken" in text or "sentencepiece" in text:
        return ModelLoadError(
            f"{asked} has no file that a tokenizer can be read from ({text.strip().splitlines()[0]}); add a "
            "tokenizer.json, or install sentencepiece where it has a tokenizer.model"
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return ModelLoadError(f"{asked} is of a kind that this transformers does not know ({why}); update transformers")
    if "Unrecognized configuration class" in text:
        return ModelLoadError(
            f"{asked} is no causal language model ({why.split(' for this kind')[0]}); take one that is"
        )
    if Path(place_of(asked)).is_dir():
        return ModelLoadError(f"{asked} cannot be loaded ({why})")
    return ModelNotFoundError(
        f"{asked} cannot be loaded ({why}); check the name, the network and HF_HUB_OFFLINE, or give a local folder"
    )
