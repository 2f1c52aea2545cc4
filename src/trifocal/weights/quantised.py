"""Quantised releases, presented as the ordinary dense tensors they stand for.

`open_weights` looks at a checkpoint's configuration and tensor names. Where it finds a scheme of `SCHEMES`, it wraps
the mapping: ``<layer>.qweight`` and its neighbours become ``<layer>.weight``, dequantised when it is asked for, so that
who reads weights need not know. All other tensors pass through. GGUF files have names of their own: see
`trifocal.gguf.language` and `trifocal.gguf.mmproj`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.errors import CheckpointError
from trifocal.files import read_object

if TYPE_CHECKING:
    import torch

    from trifocal.weights.packed import PackedLinear
    from trifocal.weights.parts import Parts, Scheme

__all__ = ["SCHEMES", "Dense", "described", "find_scheme", "gathered", "open_weights"]

SCHEMES = {
    "gptq": "trifocal.weights.gptq:Gptq",
    "awq": "trifocal.weights.awq:Awq",
    "fp8": "trifocal.weights.fp8:Fp8",
    "compressed-tensors": "trifocal.weights.fp8:Fp8",
    "bitsandbytes": "trifocal.weights.bitsandbytes:BitsAndBytes",
}
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_PACKED = (".qweight", ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4", ".SCB")

Where = Callable[[str], str]


def open_weights(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: Path, where: Where | None = None
) -> Mapping[str, torch.Tensor]:
    """``tensors`` as they are, or, where they are quantised, a `Dense` view of them.

    ``config`` is the language model's own configuration (its dims say the layers' true shapes); how they are
    quantised stands in its ``quantization_config``, in that of the ``config.json`` in ``folder``, or beside it in
    ``quantize_config.json`` or ``quant_config.json``; ``where`` tells the file of a tensor, for messages.

    Raises:
        CheckpointError: a scheme that can't be unpacked, by its name, or a description that is no valid one.
    """
    name_file = where or (lambda name: str(folder))
    scheme = find_scheme(tensors, config, folder, name_file)
    return tensors if scheme is None else Dense(tensors, config, scheme, name_file)


def find_scheme(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: Path, where: Where
) -> Scheme | None:
    """The scheme by the configuration, by a file beside it, or by the tensors; None for ordinary weights."""
    packed = next((name for name in tensors if name.endswith(_PACKED)), None)
    given, method, source = described(config, folder)
    if method is None and packed is None:
        return None
    if method is None:
        return _by_shape(tensors, config, packed or "", where)
    if not isinstance(method, str) or method not in SCHEMES:
        raise CheckpointError(
            f"{source}: quantised with {method!r}; can be read: {', '.join(sorted(SCHEMES))}, and GGUF files"
        )
    if method in ("gptq", "awq") and packed is None:
        raise CheckpointError(f"{source}: says the weights are {method}, but no tensor is called '...qweight'")
    return _load(method).from_config(given, str(source))  # type: ignore[no-any-return]


def described(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], Any, Path]:
    """How the weights are said to be quantised, by which method (None: it is not said), and the file that says so."""
    source = folder / "config.json"
    given = config.get("quantization_config") or (read_object(source) if source.is_file() else {}).get(
        "quantization_config"
    )
    given = given if isinstance(given, dict) else {}
    method = given.get("quant_method")
    for name, kind in _FILES.items():
        if method is None and (folder / name).is_file():
            given, method, source = read_object(folder / name), kind, folder / name
    return given, method, source


class Dense(Mapping[str, "torch.Tensor"]):
    """A quantised checkpoint's tensors under their dense names; also a `trifocal.weights.packed.PackedWeights`.

    A dequantised weight is float32. A bias of nothing but zeros, which old GPTQ files hold for every layer, is left out
    where the architecture has none.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], scheme: Scheme, where: Where
    ) -> None:
        self._tensors, self._config, self._scheme, self._where = tensors, config, scheme, where
        self._layers = gathered(tensors, scheme, where)
        inside = {name for parts in self._layers.values() for name in parts.values()}
        self._plain = {name for name in tensors if name not in inside}
        self._biases = {
            f"{layer}.bias": parts["bias"] for layer, parts in self._layers.items() if self._has_bias(layer, parts)
        }
        self._names = list(dict.fromkeys(self._ordered()))

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._plain:
            return self._tensors[name]
        if name in self._biases:
            return self._tensors[self._biases[name]]
        return self._scheme.dense(self._parts(self._layer(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def packed(self, name: str, device: torch.device | None = None) -> PackedLinear | None:
        """The layer's levels on a device, or None where it is an ordinary tensor or has none."""
        layer = name.removesuffix(".weight")
        if layer not in self._layers or not name.endswith(".weight"):
            return None
        parts = self._parts(layer)
        return self._scheme.packed(parts if device is None else parts.to(device))

    def where(self, name: str) -> Path:
        """The file that holds a tensor, or what it is made of."""
        layer = name.removesuffix(".weight")
        inside = layer in self._layers and name not in self._plain and name not in self._biases
        return Path(self._where(self._layers[layer][self._scheme.marker] if inside else self._biases.get(name, name)))

    @property
    def files(self) -> set[Path]:
        """The files that hold any part of these tensors."""
        return {Path(self._where(name)) for name in self._tensors} | getattr(self._tensors, "files", set())

    def _ordered(self) -> Iterator[str]:
        """Dense names in the order of the packed ones."""
        layers = {name: layer for layer, parts in self._layers.items() for name in parts.values()}
        for name in self._tensors:
            if name in self._plain:
                yield name
            elif f"{layers[name]}.bias" in self._biases:
                yield from (f"{layers[name]}.weight", f"{layers[name]}.bias")
            else:
                yield f"{layers[name]}.weight"

    def _layer(self, name: str) -> str:
        layer = name.removesuffix(".weight")
        if not name.endswith(".weight") or layer not in self._layers:
            raise KeyError(name)
        return layer

    def _parts(self, layer: str) -> Parts:
        from trifocal.weights.parts import Parts

        names = self._layers[layer]
        where = self._where(names[self._scheme.marker])
        outputs, inputs = _features(layer, self._config, where)
        tensors = {part: self._tensors[name] for part, name in names.items() if part != "bias"}
        if f"{layer}.bias" in self._biases:
            tensors["bias"] = self._tensors[names["bias"]]
        return Parts(layer, where, outputs, inputs, tensors)

    def _has_bias(self, layer: str, names: Mapping[str, str]) -> bool:
        """Whether the layer's bias is one of the model's, and no row of zeros that its packer always writes."""
        if "bias" not in names:
            return False
        stem = layer.rpartition(".")[2]
        kind = self._config.get("model_type", "llama")
        expected = kind.startswith("qwen") and stem in ("q_proj", "k_proj", "v_proj")
        return expected or bool(self._tensors[names["bias"]].any())


def gathered(tensors: Mapping[str, torch.Tensor], scheme: Scheme, where: Where) -> dict[str, dict[str, str]]:
    """Layer -> part -> the tensor's full name, for each layer that is quantised."""
    endings = (scheme.marker, *scheme.others)
    layers: dict[str, dict[str, str]] = {}
    for name in tensors:
        for part in endings:
            if name.endswith(f".{part}"):
                layers.setdefault(name.removesuffix(f".{part}"), {})[part] = name
                break
    quantised = {
        layer: parts
        for layer, parts in layers.items()
        if len(parts) > 1 or scheme.marker != "weight"  # a lone "weight" is an ordinary one
    }
    for layer, parts in quantised.items():
        if f"{layer}.bias" in tensors:
            parts["bias"] = f"{layer}.bias"
        if scheme.marker not in parts:
            found = sorted(parts.values())
            raise CheckpointError(
                f"{where(found[0])}: the tensor '{layer}.{scheme.marker}' is missing; there is {', '.join(found)}"
            )
    return quantised


def _features(layer: str, config: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Outputs and inputs of a layer of a LLaMA-shaped model, by its configuration."""
    try:
        hidden, inner, heads = (
            config[f"{name}"] for name in ("hidden_size", "intermediate_size", "num_attention_heads")
        )
    except KeyError as error:
        raise CheckpointError(f"{where}: the configuration says no {error}, which unpacking needs") from error
    size = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * size
    shapes = {
        "q_proj": (heads * size, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, heads * size),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
        "lm_head": (config.get("vocab_size", 32000), hidden),
    }
    stem = layer.rpartition(".")[2]
    if stem not in shapes:
        raise CheckpointError(
            f"{where}: the layer '{layer}' is quantised; those of the language model can be read: {', '.join(shapes)}"
        )
    return shapes[stem]


def _by_shape(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], packed: str, where: Where) -> Scheme:
    """The scheme of files that no configuration describes: GPTQ and AWQ differ where a layer is not square."""
    from trifocal.weights.awq import Awq
    from trifocal.weights.bitsandbytes import BitsAndBytes
    from trifocal.weights.gptq import Gptq

    if not packed.endswith(".qweight"):
        return BitsAndBytes()
    if any(name.endswith(".g_idx") for name in tensors):
        return Gptq()
    packed = next((name for name in tensors if name.endswith(".gate_proj.qweight")), packed)
    _, inputs = _features(packed.removesuffix(".qweight"), config, where(packed))
    words = tensors[packed]
    by_input = words.ndim == 2 and words.shape[0] == inputs  # [in, out / 8]
    groups = tensors.get(packed.replace(".qweight", ".scales"))
    if str(words.dtype) == "torch.int16" or (not by_input and words.ndim == 2 and words.shape[1] == inputs // 8):
        return Awq(group_size=None)
    if by_input:
        return Awq(None if groups is None or not len(groups) else inputs // len(groups), "gemm")
    return Gptq()


def _load(method: str) -> Any:
    import importlib

    module, attribute = SCHEMES[method].split(":")
    return getattr(importlib.import_module(module), attribute)
