"""Which engine `auto` is: by the files, the options, the device and what is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from trifocal.checkpoints import from_folder, language_recipe
from trifocal.engines import ENGINES, Recipe, load_engine
from trifocal.engines.choosing import choices
from trifocal.engines.native import Native
from trifocal.placement import Placement

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
GPTQ = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
AWQ = {**LLAMA, "quantization_config": {"quant_method": "awq", "w_bit": 4}}
CPU = {"device": "cpu"}


def installed(monkeypatch: pytest.MonkeyPatch, *, llama_cpp: bool) -> None:
    find = importlib.util.find_spec

    def found(name: str, *rest: Any) -> Any:
        return (find("json") if llama_cpp else None) if name == "llama_cpp" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def chosen(source: str = "there", config: Any = LLAMA, **facts: Any) -> list[str]:
    return [choice.engine for choice in choices(Recipe(source=source, config=config, **{**CPU, **facts}))]


def test_without_llama_cpp_it_is_native_or_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, llama_cpp=False)
    for source, config in (("there", LLAMA), ("there.gguf", LLAMA), ("there", GPTQ)):
        assert chosen(source, config) == ["native", "transformers"]
    assert chosen(config={"model_type": "gemma2"}) == ["transformers"]
    assert chosen(attention="images") == ["transformers"]


def test_with_llama_cpp_it_is_that_for_gguf_and_four_bits_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, llama_cpp=True)
    first = ["llamacpp", "native", "transformers"]
    assert chosen("there.gguf") == first
    assert chosen(config=GPTQ) == first
    assert chosen(config=AWQ) == first
    assert chosen(config=GPTQ, options={"context": 100, "threads": 1}) == first
    assert chosen("there.gguf", {**LLAMA, "model_type": "granite"}) == ["llamacpp", "transformers"]


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"config": GPTQ, "dtype": "float32"},
        {"config": {**GPTQ, "quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": True}}},
        {"config": {**GPTQ, "quantization_config": {"quant_method": "gptq", "bits": 8}}},
        {"config": GPTQ, "options": {"int4": True}},
        {"source": "there.gguf", "adapter": "adapter"},
        {"config": GPTQ, "device": "cuda:0"},
    ],
)
def test_where_llama_cpp_is_not_sure_to_win_it_is_not_taken(facts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, llama_cpp=True)
    assert chosen(**facts) == ["native", "transformers"]


def test_an_option_that_it_alone_has_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, llama_cpp=True)
    [first, *_] = choices(Recipe(source="there", config=LLAMA, options={"quantise": "Q8_0"}))
    assert (first.engine, first.why) == ("llamacpp", "it alone has the option quantise")


def test_where_the_first_choice_fails_the_next_one_runs_and_that_is_told(
    hf15: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed(monkeypatch, llama_cpp=True)
    recipe = language_recipe(from_folder(hf15), Placement("cpu"), options={"context": 64})
    monkeypatch.setitem(ENGINES, "llamacpp", "trifocal.not_there:load")
    monkeypatch.setattr("trifocal.engines.choosing._four_bits", lambda _: "it is the fastest")
    with caplog.at_level("WARNING", "trifocal"):
        engine = load_engine(recipe)
    assert isinstance(engine, Native)
    assert "llamacpp was the first choice (it is the fastest), but" in caplog.text
    engine.close()
