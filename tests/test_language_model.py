import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sleep_pipeline
from sleep_pipeline.language_model import (
    ChatTemplateError,
    ModelNotFoundError,
    RemoteCodeError,
    UnsafeWeightsError,
    embedded_path,
    load_tokenizer,
    without_thinking,
    without_today,
)


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
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(RemoteCodeError, match="read that code"):
        sleep_pipeline.load_model(folder)


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
    each = "{%- for m in messages -%}<{{ m['role'] }}>{{ m['content'] }}{%- endfor -%}"
    refusing = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}" + each
    tokenizer = load_tokenizer(templated(folder, refusing))
    turns = [{"role": role, "content": f"{role} text"} for role in ("system", "user", "assistant")]

    def render(*chosen: dict[str, str]) -> Any:
        return tokenizer.apply_chat_template(list(chosen), tokenize=False)

    assert render(*turns) == "<user>system text\n\nuser text<assistant>assistant text"
    assert render(*turns[1:]) == "<user>user text<assistant>assistant text"
    assert render(turns[0]) == "<user>system text"
    tokenizer.save_pretrained(folder)
    again = load_tokenizer(folder)
    assert again.chat_template == tokenizer.chat_template, "a template that takes them is left alone"


def test_a_template_that_leaves_a_memory_out_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"where a memory stands.*save another chat_template\.jinja"):
        load_tokenizer(templated(folder, "{{ messages[-1]['content'][:3] }}"))


EACH = "{%- for m in messages -%}{{ m['content'] }}:{% endfor -%}"
TURN = [{"role": "user", "content": "where is it"}]


def test_a_model_that_thinks_aloud_by_default_answers_at_once(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    plain = tokenizer.chat_template
    thinking = EACH + "{%- if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    tokenizer.chat_template = thinking
    assert tokenizer.apply_chat_template(TURN, tokenize=False) == "where is it:<think>"
    tokenizer.save_pretrained(folder)
    for _ in range(2):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.apply_chat_template(TURN, tokenize=False) == "where is it:"
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
        assert tokenizer.apply_chat_template(TURN, tokenize=False) == "Today is 26 Jul 2024.where is it:"
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
