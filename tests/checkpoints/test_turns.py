"""Whose turns a checkpoint's conversations are written in: its recipe's, or the language model's own."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import gguf_maker as maker
import pytest
from test_jinja import CHATML, LLAVA_HF
from test_templates import BLUE, written

from checkpoint_maker import V0
from gguf_layout import save_gguf
from layouts import family, save_original
from trifocal import load
from trifocal.checkpoints import find_checkpoint, from_folder
from trifocal.checkpoints.known import KNOWN
from trifocal.checkpoints.parts import Text
from trifocal.checkpoints.turns import template_of
from trifocal.conversation.jinja import find_template
from trifocal.errors import CheckpointError
from trifocal.messages import Message
from trifocal.tools.convert import join, split

PHI = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] +"
    " '<|end|>\n<|assistant|>\n' }}{% else %}{{ m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim +"
    " '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + "
    "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' if add_generation_prompt }}"
)
MISTRAL = (
    "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m.role == 'user' else m.content + eos_token }}"
    "{% endfor %}"
)
QWEN_2_5 = CHATML.replace("{% for", "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.' }}{% for", 1)
ZEPHYR = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}{% endfor %}<|assistant|>\n"
# where the field keeps templates, each with what wraps them
PLACES = {
    "chat_template.jinja": lambda source: source,
    "chat_template.json": lambda source: json.dumps({"chat_template": source}),
    "processor_config.json": lambda source: json.dumps({"chat_template": source}),
    "tokenizer_config.json": lambda source: json.dumps({"chat_template": source}),
    "several in tokenizer_config.json": lambda source: json.dumps(
        {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": source}]}
    ),
    "one with a name in tokenizer_config.json": lambda source: json.dumps(
        {"chat_template": [{"name": "chat", "template": source}]}
    ),
    "names in processor_config.json": lambda source: json.dumps({"chat_template": {"rag": "x", "default": source}}),
}
OTHER = [Message("user", (BLUE, "Q1")), Message("assistant", "A1"), Message("user", "Q2")]
SAID = "<|user|>\n<image>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n<|assistant|>\n"


def folder_with(folder: Path, own: str | None, tokens: str = "") -> Path:
    folder.mkdir()
    if own is not None:
        (folder / "chat_template.jinja").write_text(own)
    if tokens:
        (folder / "added_tokens.json").write_text(json.dumps(dict.fromkeys(tokens.split(), 1)))
    return folder


@pytest.mark.parametrize(
    ("kind", "tokens", "own", "older", "newer"),
    [
        ("llama", "", None, "llava_v1", "llava_v1"),
        ("llama", "", LLAVA_HF, "llava_v1", "llava_v1"),
        ("llama", "", MISTRAL, "checkpoint", "checkpoint"),
        ("llama", "", ZEPHYR, "checkpoint", "checkpoint"),
        ("llama", "<|eot_id|>", None, "llava_llama_3_hf", "llava_llama_3_hf"),
        ("llama", "<|eot_id|>", LLAMA_3, "llava_llama_3_hf", "llava_llama_3_hf"),
        ("llama", "", LLAMA_3, "checkpoint", "checkpoint"),
        ("llama", "<|im_start|>", CHATML, "checkpoint", "chatml_direct"),
        ("mistral", "", None, "llava_v1", "mistral_instruct"),
        ("mistral", "", LLAVA_HF, "llava_v1", "checkpoint"),
        ("mistral", "", MISTRAL, "checkpoint", "mistral_instruct"),
        ("qwen2", "<|im_start|>", None, "qwen_1_5", "qwen_1_5"),
        ("qwen2", "<|im_start|>", CHATML, "qwen_1_5", "qwen_1_5"),
        ("qwen2", "<|im_start|>", QWEN_2_5, "qwen_2_5", "qwen_2_5"),
        ("qwen2", "", ZEPHYR, "checkpoint", "checkpoint"),
        ("gemma", "", None, "gemma_instruct", "gemma_instruct"),
        ("gemma2", "", GEMMA, "gemma_instruct", "gemma_instruct"),
        ("phi3", "", PHI, "checkpoint", "checkpoint"),
        ("cohere", "", ZEPHYR, "checkpoint", "checkpoint"),
    ],
)
def test_the_recipes_turns_unless_the_models_own_are_others(
    kind: str, tokens: str, own: str | None, older: str, newer: str, tmp_path: Path
) -> None:
    text = Text(folder_with(tmp_path / "one", own, tokens), {"model_type": kind})
    assert (template_of(text, newer=False), template_of(text, newer=True)) == (older, newer)


def test_a_token_is_found_in_sentencepiece_s_file_and_in_qwen_s(tmp_path: Path) -> None:
    yi = folder_with(tmp_path / "yi", None)
    piece = b"<|im_start|>"
    score = struct.pack("<f", -5.0)
    inner = b"\x0a" + bytes([len(piece)]) + piece + b"\x15" + score
    (yi / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02\x0a" + bytes([len(inner)]) + inner)
    assert template_of(Text(yi, {"model_type": "llama"}), newer=True) == "chatml_direct"
    other = folder_with(tmp_path / "other", None)
    (other / "tokenizer.model").write_bytes(b"\x0a\x0f\x0a\x0dx<|im_start|>")
    assert template_of(Text(other, {"model_type": "llama"}), newer=True) == "llava_v1"
    words = folder_with(tmp_path / "words", None)
    (words / "vocab.json").write_text('{"<|eot_id|>": 3}')
    assert template_of(Text(words, {"model_type": "llama"}), newer=True, original=True) == "llava_llama_3"


@pytest.mark.parametrize("place", PLACES)
def test_a_llava_around_another_model_takes_its_turns_from_wherever_they_are(
    place: str, hf15: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(hf15, tmp_path / "phi"))
    (folder / place.split(" in ")[-1]).write_text(PLACES[place](PHI))
    with load(checkpoint=str(folder), engine="echo") as llava:
        assert llava.template.name == "checkpoint"
        assert written(llava.template.render(OTHER)).removeprefix("<s>") == SAID
        assert llava.template.stop == ("<|end|>",)
    split(find_checkpoint(str(folder)), tmp_path / "parts")
    parts = {f"{part}_from": str(tmp_path / "parts" / part) for part in ("tower", "projector")}
    with load(checkpoint=str(tmp_path / "parts" / "language"), engine="echo", **parts) as llava:
        assert written(llava.template.render(OTHER)).removeprefix("<s>") == SAID
    join(tmp_path / "parts", tmp_path / "whole")
    with load(checkpoint=str(tmp_path / "whole"), engine="echo") as llava:
        assert written(llava.template.render(OTHER)).removeprefix("<s>") == SAID


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.chat"])
def test_a_gguf_pair_s_own_turns(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = maker.tables
    monkeypatch.setattr(maker, "tables", lambda made: {**tables(made), key: PHI})
    found = find_checkpoint(str(save_gguf(family("1.5"), tmp_path / "pair", "F32")))
    assert found.template == "checkpoint"
    assert "<|user|>" in written(find_template("checkpoint", found.language.source).render(OTHER))


def test_a_bare_model_with_eyes_from_elsewhere_takes_its_own_turns(v0: V0, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(v0.language, tmp_path / "zephyr"))
    (folder / "chat_template.jinja").write_text(ZEPHYR)
    found = from_folder(folder, tower=str(v0.tower), projector=str(v0.projector))
    assert found.template == "checkpoint"


def test_templates_of_which_none_is_the_default_are_told(hf15: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hf15, tmp_path / "two"))
    named = [{"name": "chat", "template": PHI}, {"name": "rag", "template": PHI}]
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": named}))
    with pytest.raises(CheckpointError, match=r"chat_template\.json: it has the chat templates chat, rag and none"):
        load(checkpoint=str(folder), engine="echo")
    load(checkpoint=str(folder), engine="echo", template="llava_v1").close()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"transformers_version": "4.28.0.dev0"}, ("llava-v0", "simple", "")),
        ({"mm_use_im_start_end": False, "sep_image_conv_front": False}, ("llava-v0", "simple", "")),
        ({"mm_use_im_start_end": False, "transformers_version": "4.31.0"}, ("llava-v1", "llava_v1", "")),
        # trained with 1.0's code before that had a version of transformers of its own
        (
            {"mm_use_im_start_end": False, "mm_use_im_patch_token": False, "transformers_version": "4.28.0.dev0"},
            ("llava-v1", "llava_v1", ""),
        ),
        (
            {"mm_use_im_start_end": True, "transformers_version": "4.28.0.dev0"},
            ("llava-v0", "llava_v0_webui", "<im_start>"),
        ),
    ],
)
def test_science_qa_has_turns_of_its_own(keys: dict[str, object], expected: object, tmp_path: Path) -> None:
    marks = bool(keys.get("mm_use_im_start_end"))
    folder = save_original(family("v0-13b" if marks else "v1"), tmp_path / "one", tower=tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    for key in ("mm_use_im_start_end", "transformers_version"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    found = from_folder(folder)
    assert (found.family, found.template, found.image_start) == expected
    assert KNOWN["liuhaotian/LLaVA-13b-delta-v0-science_qa"].template == "simple"
    assert KNOWN["liuhaotian/llava-v1.6-34b"].template == "chatml_direct"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Original checkpoints of 1.6 around three language models, with the tokenizer of Qwen's or without."""
    home = tmp_path_factory.mktemp("originals")
    return {name: save_original(family(name), home / name) for name in ("1.6-vicuna", "1.6-mistral", "1.6-qwen")}


@pytest.mark.parametrize(
    ("name", "says", "kind", "template"),
    [
        ("1.6-qwen", {"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava"}, "qwen2", "qwen_1_5"),
        ("1.6-qwen", {"architectures": None, "model_type": "llava"}, "qwen2", "qwen_1_5"),
        ("1.6-qwen", {"architectures": [], "model_type": "llava"}, "qwen2", "qwen_1_5"),
        ("1.6-qwen", {"architectures": "LlavaQwenForCausalLM"}, "qwen2", "qwen_1_5"),
        ("1.6-qwen", {"architectures": ["LlavaModel"], "model_type": None}, "qwen2", "qwen_1_5"),
        ("1.6-qwen", {"architectures": None, "model_type": "llava_qwen"}, "qwen2", "qwen_1_5"),
        ("1.6-mistral", {"architectures": None, "model_type": "llava"}, "mistral", "mistral_instruct"),
        (
            "1.6-mistral",
            {"architectures": ["MineMistralForCausalLM"], "model_type": "mine"},
            "mistral",
            "mistral_instruct",
        ),
        ("1.6-mistral", {"architectures": ["LlavaMixtralForCausalLM"]}, "mixtral", "llava_v1"),
        ("1.6-vicuna", {"architectures": None, "model_type": "llava"}, "llama", "llava_v1"),
        ("1.6-vicuna", {"architectures": ["Share4VLlamaForCausalLM"], "model_type": "share4v"}, "llama", "llava_v1"),
        ("1.6-vicuna", {"architectures": ["LlavaGemmaForCausalLM"]}, "gemma", "gemma_instruct"),
        ("1.6-vicuna", {"architectures": ["LlavaQwenMoeForCausalLM"]}, "qwen2_moe", "llava_v1"),
    ],
)
def test_a_language_model_is_told_by_its_class_and_where_none_is_named_by_its_tensors(
    name: str, says: dict[str, object], kind: str, template: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    """``model_type: llava`` is said of all of them."""
    for file in originals[name].iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((originals[name] / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **says}))
    found = from_folder(tmp_path)
    assert (found.language.config["model_type"], found.template) == (kind, template)
