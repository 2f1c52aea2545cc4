"""Checkpoints as GGUF files: the numbers that come out are those that went in, and a file is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import packers
import pytest
import torch

from trifocal.engines.language import Language
from trifocal.engines.llamacpp import kept
from trifocal.engines.llamacpp.conversion import convert
from trifocal.engines.shape import unfit_for_gguf
from trifocal.errors import CheckpointError, UsageError
from trifocal.gguf import writing
from trifocal.gguf.container import GgufFile
from trifocal.gguf.language import GgufLanguage
from trifocal.weights.quantised import open_weights
from trifocal.weights.tensors import Weights

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
SHAPES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (256, 128),
    "mlp.up_proj": (256, 128),
    "mlp.down_proj": (128, 256),
}


def floats(dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    names = {"model.embed_tokens.weight": (40, 128), "lm_head.weight": (40, 128), "model.norm.weight": (128,)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        names |= {f"{at}.{name}.weight": shape for name, shape in SHAPES.items()}
        names |= {f"{at}.input_layernorm.weight": (128,), f"{at}.post_attention_layernorm.weight": (128,)}
    return {name: (torch.randn(shape, generator=random) / 8).to(dtype) for name, shape in names.items()}


def gptq(kind: str) -> dict[str, torch.Tensor]:
    """Layers in groups of 64: ``symmetric`` with all zeros at 8, ``asymmetric``, or in ``act-order``."""
    tensors = floats(torch.float16)
    for name in [name for name in tensors if "_proj" in name]:
        shape = tuple(tensors.pop(name).shape)
        levels, zeros, scales = packers.layer(*shape, shape[1] // 64)
        zeros = zeros * 0 + 8 if kind == "symmetric" else zeros
        layer = name.removesuffix("weight")
        tensors |= {f"{layer}{part}": value for part, value in packers.gptq(levels, zeros, scales, 4).items()}
        group = torch.arange(shape[1]) // 64
        order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(3))
        tensors[f"{layer}g_idx"] = (group[order] if kind == "act-order" else group).int()
    return tensors


def language(tensors: dict[str, torch.Tensor], folder: Path, **config: Any) -> Language:
    """As it is opened from a folder of safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    told = {**CONFIG, **config}
    weights = Weights([folder / "model.safetensors"], lambda name: name)
    return Language(folder, told, open_weights(weights, told, folder, lambda name: str(weights.where(name))))


def kinds(file: Path) -> set[str]:
    opened = GgufFile(file)
    return {
        opened.info(name).kind.name for name in opened if name.startswith("blk") and len(opened.info(name).shape) > 1
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_keep_their_type_and_every_number(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, file = floats(dtype), tmp_path / "made.gguf"
    convert(language(tensors, tmp_path / "folder"), file)
    read = GgufLanguage(GgufFile(file))
    assert set(read) == set(tensors)
    for name, values in tensors.items():
        assert torch.equal(read[name].float(), values.float()), name
        assert read[name].dtype == (dtype if values.ndim > 1 else torch.float32)
    wanted = {key: value for key, value in CONFIG.items() if key != "rms_norm_eps"}
    assert {key: read.config[key] for key in wanted} == wanted


@pytest.mark.parametrize(("kind", "told"), [("symmetric", {"Q4_0"}), ("asymmetric", {"Q4_1"}), ("act-order", {"Q8_0"})])
def test_gptq_keeps_its_levels(tmp_path: Path, kind: str, told: set[str], caplog: pytest.LogCaptureFixture) -> None:
    given, file = language(gptq(kind), tmp_path / "folder"), tmp_path / "made.gguf"
    with caplog.at_level("WARNING", "trifocal"):
        convert(given, file)
    assert kinds(file) == told
    assert ("14 layers" in caplog.text) == (kind == "act-order")
    read = GgufLanguage(GgufFile(file))
    for name in given.weights:
        error = float((read[name].float() - given.weights[name].float()).abs().max())
        largest = float(given.weights[name].abs().max())
        # float16 rounds the offset, 16 levels at most; eight bits round by half a step of the block
        assert error <= {"symmetric": 1e-8, "asymmetric": 0.02 * 16 * 2**-11, "act-order": largest / 250}[kind], name


def test_floats_are_rounded_where_that_is_asked_for(tmp_path: Path) -> None:
    given = language(floats(torch.float16), tmp_path / "folder")
    for rounding in ("F16", "Q8_0", "Q4_0"):
        file = tmp_path / f"{rounding}.gguf"
        convert(given, file, rounding=rounding)
        assert kinds(file) == {rounding}
        head = GgufFile(file).info("output.weight").kind.name
        assert head == ("Q8_0" if rounding == "Q4_0" else rounding)
        assert GgufFile(file).info("token_embd.weight").kind.name == "F16"


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    tensors = floats(torch.float16)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    file = tmp_path / "made.gguf"
    convert(language(tensors, tmp_path / "folder", tie_word_embeddings=True), file)
    assert "output.weight" not in GgufFile(file)


def test_what_is_missing_too_much_or_of_another_shape_is_said(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    whole, file = floats(torch.float16), tmp_path / "made.gguf"
    wrong = {
        "missing": {key: value for key, value in whole.items() if key != name},
        "unexpected": {**whole, "model.layers.1.mlp.extra.weight": torch.zeros(2)},
        "was expected": {**whole, name: torch.zeros(256, 64)},
        "not finite": {**whole, name: whole[name] * torch.inf},
    }
    for at, (reason, tensors) in enumerate(wrong.items()):
        with pytest.raises(CheckpointError, match=reason):
            convert(language(tensors, tmp_path / f"folder {at}"), file)
        assert not file.exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.5}, "part of each head"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_cannot_be_converted_is_known_before(config: dict[str, Any], reason: str) -> None:
    assert reason in (unfit_for_gguf({**CONFIG, **config}) or "")
    assert unfit_for_gguf(CONFIG) is None


def test_a_file_is_made_once_and_anew_when_the_checkpoint_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = language(floats(torch.float16), tmp_path / "folder")
    first = kept.made_of(given, None)
    written = first.stat().st_mtime_ns
    assert kept.made_of(given, None) == first
    assert first.stat().st_mtime_ns == written
    assert kept.made_of(given, "Q8_0") != first
    changed = language(floats(torch.float16, seed=1), tmp_path / "folder")
    assert kept.made_of(changed, None) != first
    assert len(list(kept.folder().iterdir())) == 3


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told = writing.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: told)
    with pytest.raises(UsageError, match="has room for"):
        kept.made_of(language(floats(torch.float16), tmp_path / "folder"), None)
    assert not list(kept.folder().iterdir())
