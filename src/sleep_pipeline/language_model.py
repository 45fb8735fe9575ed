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
    """The tokenizer has no chat template."""


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
        ChatTemplateError: the tokenizer has no chat template.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer(name_or_path, trust_remote_code=trust_remote_code)
    name = place_of(name_or_path)
    _check_folder(name, str(name_or_path), trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise explained(error, str(name_or_path)) from error
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def load_tokenizer(name_or_path: str | Path = EMBEDDED, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a causal LM alone, with a pad token and padding on the left; see `load_model`.

    Raises:
        ModelNotFoundError: nothing is there, or the hub cannot be reached.
        RemoteCodeError: the model needs code of its own and `trust_remote_code` is off.
        ChatTemplateError: the tokenizer has no chat template, or none that can show a memory.
    """
    from transformers import AutoTokenizer

    name = place_of(name_or_path)
    _check_folder(name, str(name_or_path), trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise explained(error, str(name_or_path)) from error
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            f"the tokenizer of {name_or_path} has no chat template; use the instruction-tuned variant of the model, or "
            "save a chat_template.jinja beside its tokenizer"
        )
    tokenizer.chat_template = without_today(without_thinking(tokenizer.chat_template))
    _take_system_turns(tokenizer, str(name_or_path))
    _check_replies(tokenizer, str(name_or_path))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


_NO_THINKING = "{%- set enable_thinking = false -%}"


def without_thinking(template: str | dict[str, str]) -> str | dict[str, str]:
    """The chat template of a model that thinks aloud by default, so that it answers at once.

    Answers are what is compared and learned; thoughts before them would be cut off, or learned with them.
    """
    if isinstance(template, dict):
        return {name: str(without_thinking(one)) for name, one in template.items()}
    if "enable_thinking" not in template or template.startswith(_NO_THINKING):
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
    if "strftime_now" not in template or template.startswith(_ONE_DAY):
        return template
    return _ONE_DAY + template


def _check_replies(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make sure that a reply can be told from its prompt.

    Raises:
        ChatTemplateError: the template writes a prompt differently once its reply is there, as those of models do that
            always think aloud.
    """
    from sleep_pipeline.generation.likelihood import encode_reply

    turns = [("system", "It rains."), ("user", "How is the weather?"), ("assistant", "Wet.")]
    try:
        encode_reply(tokenizer, [{"role": role, "content": content} for role, content in turns])
    except ValueError as error:
        raise ChatTemplateError(
            f"the chat template of {name} writes a prompt differently once its reply is there, as those of models do "
            "that always think aloud: use a variant of the model that answers at once, or save a chat_template.jinja "
            "beside its tokenizer whose prompts end where a reply begins"
        ) from error


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


def _check_folder(path: str, asked: str, trust_remote_code: bool) -> None:
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
    if "auto_map" in json.loads(config.read_text(encoding="utf-8")) and not trust_remote_code:
        raise remote_code(asked)
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
    return ModelNotFoundError(
        f"{asked} cannot be loaded ({text.splitlines()[0]}); check the name, the network and HF_HUB_OFFLINE, or give "
        "a local folder"
    )
