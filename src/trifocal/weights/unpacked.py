"""Towers and projectors of few bits: transformers quantises every linear layer unless it is told otherwise.

Their layers say their own shapes, in bitsandbytes' description or by their eight-bit values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trifocal.errors import CheckpointError
from trifocal.weights.quantised import described, gathered
from trifocal.weights.tensors import Weights

if TYPE_CHECKING:
    import torch

    from trifocal.weights.parts import Scheme

__all__ = ["unpacked"]

_STATE = "weight.quant_state.bitsandbytes__"
_SCALES = (".weight_scale", ".weight_scale_inv")
_OTHERS = (".qweight", ".weight_packed")


def unpacked(weights: Weights, source: Path) -> Weights:
    """A tower's or projector's tensors as they are, or as the dense ones that they stand for.

    Raises:
        CheckpointError: layers that are packed in a way whose shapes can't be told.
    """
    odd = next((name for name in weights if name.endswith(_OTHERS)), None)
    if odd is not None:
        raise CheckpointError(
            f"{weights.where(odd)}: {odd} is a layer of few bits; of towers and projectors those of bitsandbytes and "
            "FP8 can be read. Take both from a release in full precision (--tower-from, --projector-from)"
        )
    if any(_STATE in name or name.endswith(".SCB") for name in weights):
        from trifocal.weights.bitsandbytes import BitsAndBytes

        return _Unpacked(weights, BitsAndBytes())
    if any(name.endswith(_SCALES) for name in weights):
        from trifocal.weights.fp8 import Fp8

        given, _, file = described({}, source if source.is_dir() else source.parent)
        return _Unpacked(weights, Fp8.from_config(given, str(file)))
    return weights


class _Unpacked(Weights):
    """Packed tensors under the names of the dense ones; these are made when they are asked for, in float32."""

    def __init__(self, packed: Weights, scheme: Scheme) -> None:
        super().__init__((), lambda name: None)
        self._packed, self._scheme = packed, scheme
        self._layers = gathered(packed, scheme, lambda name: str(packed.where(name)))
        inside = {name for parts in self._layers.values() for part, name in parts.items() if part != "bias"}
        dense = {f"{layer}.weight" for layer in self._layers}
        self._places = {name: packed._places[name] for name in packed if name in dense or name not in inside}

    def __getitem__(self, name: str) -> torch.Tensor:
        from trifocal.weights.parts import Parts

        layer = self._layer(name)
        if layer is None:
            return self._packed[name]
        tensors = {part: self._packed[stored] for part, stored in self._layers[layer].items() if part != "bias"}
        rows, columns = self.spec(name)[1]
        return self._scheme.dense(Parts(layer, str(self._packed.where(name)), rows, columns, tensors))

    def spec(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of a tensor as it will be read."""
        layer = self._layer(name)
        if layer is None:
            return self._packed.spec(name)
        state = next((stored for part, stored in self._layers[layer].items() if part.startswith(_STATE)), None)
        shape = self._packed.spec(name)[1] if state is None else self._said(state)
        if len(shape) != 2:
            raise CheckpointError(f"{self._packed.where(name)}: {name} is {list(shape)}, [rows, columns] was expected")
        return "F32", shape

    @property
    def files(self) -> set[Path]:
        """The files that hold any of these tensors."""
        return self._packed.files

    def release(self) -> None:
        """Lets go of the pages of all ``.bin`` files."""
        self._packed.release()

    def _layer(self, name: str) -> str | None:
        """The packed layer of which this is the dense weight."""
        layer = name.removesuffix(".weight")
        return layer if layer != name and layer in self._layers else None

    def _said(self, state: str) -> tuple[int, ...]:
        """The shape in bitsandbytes' description of a layer."""
        try:
            shape = json.loads(bytes(self._packed[state].tolist()))["shape"]
            return tuple(int(each) for each in shape)
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self._packed.where(state)}: {state} tells no shape ({error})") from error
