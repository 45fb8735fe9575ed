import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sleep_pipeline
from sleep_pipeline.generation.replies import greedy_replies
from sleep_pipeline.generation.sampler import end_marks
from sleep_pipeline.language_model import (
    ChatTemplateError,
    ModelLoadError,
    ModelNotFoundError,
    RemoteCodeError,
    UnsafeWeightsError,
    embedded_path,
    load_tokenizer,
    without_thinking,
    without_today,
)
from sleep_pipeline.pretraining.trainer import build_model


@pytest.fixture
def folder(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_folder_comes_back_ready_for_batched_chat(folder: Path, tiny_model: Any) -> None:
    model, tokenizer = sleep_pipeline.load_model(folder)
    assert not model.training
    assert tokenizer.padding_side == "left" and tokenizer.pad_token is not None
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, tiny_model(ids).logits)


def test_a_tokenizer_without_pad_token_pads_with_the_end(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            values = json.loads(path.read_text())
            values.pop("pad_token", None)
            path.write_text(json.dumps(values))
    _, tokenizer = sleep_pipeline.load_model(folder)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"


def test_a_token_for_padding_that_the_model_has_no_row_for_is_not_used(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"pad_token_id": len(tokenizer) - 1}))
    model, tokenizer = sleep_pipeline.load_model(folder)
    prompts = [[{"role": "user", "content": text}] for text in ("Who?", "Who works for the mill?")]
    assert len(greedy_replies(model, tokenizer, prompts, 4)) == 2
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "nobody/no-such-model"])
def test_what_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=name.replace(".", r"\.")):
        sleep_pipeline.load_model(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json"):
        sleep_pipeline.load_model(tmp_path)


def test_weights_of_another_format_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match=r"no \.safetensors weights"):
        sleep_pipeline.load_model(folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_evil.Evil")
    config |= {"model_type": "evil", "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(RemoteCodeError, match="read that code"):
        sleep_pipeline.load_model(folder)


def test_code_that_nobody_needs_refuses_no_model(folder: Path, tiny_model: Any) -> None:
    # As some models bring it that transformers has had its own code for since.
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_old.Old"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_old.py").write_text("raise SystemExit('executed')")
    model, _ = sleep_pipeline.load_model(folder)
    assert type(model) is type(tiny_model)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layers.1" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=rf"lacks 1 of its weights, such as {lost}"):
        sleep_pipeline.load_model(folder)


def test_damaged_files_are_named(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError, match=r"weights of .* is damaged .*; fetch it again"):
        sleep_pipeline.load_model(folder)
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(ModelLoadError, match=r"config\.json is damaged"):
        sleep_pipeline.load_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelLoadError, match=r"config\.json is damaged, since it holds no object"):
        load_tokenizer(folder)


@pytest.mark.slow
def test_a_folder_that_is_there_is_not_blamed_on_the_network(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for kind, told in (("t5", "is no causal language model"), ("from_tomorrow", "update transformers")):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        with pytest.raises(ModelLoadError, match=told) as caught:
            sleep_pipeline.load_model(folder)
        assert "network" not in str(caught.value)


def test_a_tokenizer_that_loses_the_text_or_is_too_large_is_refused(folder: Path, tiny_settings: Any) -> None:
    small = tiny_settings.architecture
    tokenizer = load_tokenizer(folder)
    build_model(small, tokenizer, seed=0).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    few = {
        name: tensor[:300].clone() if tensor.shape[0] == len(tokenizer) else tensor for name, tensor in weights.items()
    }
    save_file(few, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(ModelLoadError, match=rf"has {tokenizer.vocab_size} tokens and the model knows 300"):
        sleep_pipeline.load_model(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"no file that a tokenizer can be read from .*; add a tokenizer\.json"):
        load_tokenizer(folder)


def test_a_tokenizer_that_does_not_read_back_what_it_was_given_is_refused(folder: Path) -> None:
    config = json.loads((folder / "tokenizer.json").read_text())
    config["model"] |= {"vocab": {"<|unk|>": 0}, "merges": [], "unk_token": "<|unk|>"}
    (folder / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"'It rains\. How is the weather\? Wet\.' back as '.*is missing or"):
        load_tokenizer(folder)


def test_replies_end_where_the_template_ends_them(folder: Path, tiny_model: Any) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|stop|>"]})
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|end|>", "<|stop|>")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelLoadError, match=rf"writes '<\|stop\|>', the token {len(tokenizer) - 1}, and the model"):
        sleep_pipeline.load_model(folder)
    tiny_model.resize_token_embeddings(len(tokenizer))
    tiny_model.save_pretrained(folder)
    model, tokenizer = sleep_pipeline.load_model(folder)
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    assert stop != tokenizer.eos_token_id and stop in end_marks(model, tokenizer)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|stop|>", "")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ChatTemplateError, match=r"ends a reply without a special token \('Wet\.'\)"):
        load_tokenizer(folder)


def test_a_heading_that_would_be_learned_as_part_of_the_reply_is_refused(folder: Path) -> None:
    each = "{%- for m in messages -%}{{ m['role'] }}: {{ m['content'] }}<|end|>{%- endfor -%}"
    with pytest.raises(ChatTemplateError, match=r"makes the reply 'Wet\.' 'assistant: Wet\.', which"):
        load_tokenizer(templated(folder, each))


def test_a_system_text_that_moves_to_the_last_user_turn_stays_in_the_first(folder: Path) -> None:
    last = (
        "{%- set told = messages[0]['content'] if messages[0]['role'] == 'system' -%}"
        "{%- for m in messages -%}{%- if m['role'] == 'user' -%}"
        "<|user|>{{ told + ' ' if loop.last and told }}{{ m['content'] }}<|end|>"
        "{%- elif m['role'] == 'assistant' -%}<|assistant|>{{ m['content'] }}<|end|>{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
    )
    tokenizer = load_tokenizer(templated(folder, last))
    turns = [{"role": role, "content": f"{role} text"} for role in ("system", "user", "assistant")]
    said = tokenizer.apply_chat_template(turns, tokenize=False)
    assert said == "<|user|>system text\n\nuser text<|end|><|assistant|>assistant text<|end|>"
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder).chat_template == tokenizer.chat_template


def test_a_model_without_chat_template_is_refused_with_the_remedy(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ChatTemplateError, match="instruction-tuned"):
        sleep_pipeline.load_model(folder)


def test_the_shipped_model_keeps_to_its_size_and_to_plain_transformers() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(embedded_path())
    assert model.num_parameters() <= 4_000_000
    assert sum(path.stat().st_size for path in embedded_path().iterdir()) <= 16_000_000
    assert (embedded_path() / "model.safetensors").exists()
    assert "## What it was trained on" in (embedded_path() / "README.md").read_text()


def templated(folder: Path, template: str) -> Path:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_where_a_template_refuses_system_turns_their_text_stands_before_the_users(folder: Path) -> None:
    each = "{%- for m in messages -%}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{%- endfor -%}"
    refusing = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}" + each
    tokenizer = load_tokenizer(templated(folder, refusing))
    turns = [{"role": role, "content": f"{role} text"} for role in ("system", "user", "assistant")]

    def render(*chosen: dict[str, str]) -> Any:
        return tokenizer.apply_chat_template(list(chosen), tokenize=False)

    answered = "<|end|><|assistant|>assistant text<|end|>"
    assert render(*turns) == f"<|user|>system text\n\nuser text{answered}"
    assert render(*turns[1:]) == f"<|user|>user text{answered}"
    assert render(turns[0]) == "<|user|>system text<|end|>"
    tokenizer.save_pretrained(folder)
    again = load_tokenizer(folder)
    assert again.chat_template == tokenizer.chat_template, "a template that takes them is left alone"


def test_a_template_that_leaves_a_memory_out_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"where a memory stands.*save another chat_template\.jinja"):
        load_tokenizer(templated(folder, "{{ messages[-1]['content'][:3] }}"))


EACH = "{%- for m in messages -%}{{ m['content'] }}<|end|>{% endfor -%}"
TURN = [{"role": "user", "content": "where is it"}]


def test_a_model_that_thinks_aloud_by_default_answers_at_once(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    plain = tokenizer.chat_template
    thinking = EACH + "{%- if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    tokenizer.chat_template = thinking
    assert tokenizer.apply_chat_template(TURN, tokenize=False) == "where is it<|end|><think>"
    tokenizer.save_pretrained(folder)
    for _ in range(2):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.apply_chat_template(TURN, tokenize=False) == "where is it<|end|>"
        tokenizer.save_pretrained(folder)
    assert without_thinking({"default": thinking})["default"] == tokenizer.chat_template
    assert without_thinking(plain) == plain, "where nothing thinks, nothing is touched"


def test_a_model_that_always_thinks_aloud_is_refused_with_the_remedy(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = EACH + "{%- if add_generation_prompt %}<think>{% endif %}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ChatTemplateError, match="always think aloud: use a variant of the model that answers at once"):
        load_tokenizer(folder)


def test_a_model_that_is_told_the_date_is_told_the_same_one_for_ever(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "Today is {{ strftime_now('%d %b %Y') }}. " + EACH
    tokenizer.save_pretrained(folder)
    for _ in range(2):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.apply_chat_template(TURN, tokenize=False) == "Today is 26 Jul 2024.where is it<|end|>"
        tokenizer.save_pretrained(folder)
    plain = "{{ messages }}"
    assert without_today({"default": plain}) == {"default": plain}


def test_a_relative_folder_is_found_from_anywhere_in_the_project(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("conf", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").touch()
    for place in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(place)
        assert load_tokenizer("model").padding_side == "left"
