"""GGUF block types, held bit for bit against gguf-py, the reference of the format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gguf
from trifocal.gguf.ggml import TYPES, dequantise


@pytest.mark.parametrize("code", sorted(code for code, kind in TYPES.items() if kind.decode))
def test_equal_to_gguf_py_bit_for_bit(code: int) -> None:
    kind = TYPES[code]
    raw = _random_blocks(code, blocks=7)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType(code)).reshape(-1)
    found = dequantise(raw.reshape(-1), kind, torch.float32).numpy()
    assert found.shape == (7 * kind.values,)
    assert found.tobytes() == expected.astype(np.float32).tobytes()


def test_sizes_are_those_of_the_reference() -> None:
    for code, kind in TYPES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(code)] == (kind.values, kind.bytes)


def test_chunks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _random_blocks(8, blocks=50)
    whole = dequantise(raw.reshape(-1), TYPES[8], torch.float32)
    monkeypatch.setattr("trifocal.gguf.ggml._CHUNK", 1)
    assert torch.equal(dequantise(raw.reshape(-1), TYPES[8], torch.float32), whole)


def _random_blocks(code: int, blocks: int) -> np.ndarray:
    """Every level, scale and mask byte random; the float16 factors finite."""
    kind = TYPES[code]
    random = np.random.default_rng(code)
    raw = random.integers(0, 256, (blocks, kind.bytes), dtype=np.uint8)
    factors = {2: [0], 3: [0, 2], 6: [0], 7: [0, 2], 8: [0], 10: [80, 82], 11: [108], 12: [0, 2], 13: [0, 2], 14: [208]}
    factors |= {20: [0], 23: [0]}
    for at in factors.get(code, []):
        raw[:, at : at + 2] = random.normal(size=(blocks, 1)).astype(np.float16).view(np.uint8)
    if kind.values == 1:
        raw = {
            0: lambda: random.normal(size=(blocks, 1)).astype(np.float32),
            1: lambda: random.normal(size=(blocks, 1)).astype(np.float16),
            30: lambda: random.integers(0x3F00, 0x4000, (blocks, 1), dtype=np.uint16),
        }[code]().view(np.uint8)
    return raw
