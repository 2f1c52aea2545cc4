"""Packers written from the formats' descriptions, bit by bit or column by column: plain, and unlike the unpackers."""

from __future__ import annotations

import json

import numpy as np
import torch

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ GEMM: nibble j of a word holds this column of eight


def stream(values: np.ndarray, bits: int) -> np.ndarray:
    """Rows of values into int32 words along the first dimension, one long little-endian stream of bits a column."""
    single = (values.astype(np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)[:, None]) & 1
    words = single.reshape(-1, 32, values.shape[1]) << np.arange(32, dtype=np.uint32)[:, None]  # [words, 32, columns]
    return np.bitwise_or.reduce(words, axis=1).view(np.int32)


def gptq(
    levels: np.ndarray, zeros: np.ndarray, scales: torch.Tensor, bits: int, *, stored_zero: bool = False
) -> dict[str, torch.Tensor]:
    """``levels [out, in]``, ``zeros [groups, out]``, ``scales [groups, out]`` -> qweight, qzeros, scales."""
    stored = zeros if stored_zero else zeros - 1
    return {
        "qweight": torch.from_numpy(stream(levels.T, bits)),
        "qzeros": torch.from_numpy(np.ascontiguousarray(stream(stored.T, bits).T)),
        "scales": scales,
    }


def awq_gemm(levels: np.ndarray, zeros: np.ndarray, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"qweight": _interleaved(levels.T), "qzeros": _interleaved(zeros), "scales": scales.half()}


def awq_gemv(levels: np.ndarray, zeros: np.ndarray, scales: torch.Tensor, multiple: int = 1) -> dict[str, torch.Tensor]:
    outputs, groups = levels.shape[0], len(zeros)
    words = -(-groups // 8)
    width = -(-words // multiple) * multiple
    padded_zeros = np.zeros((8 * width, outputs), dtype=np.int64)
    padded_zeros[:groups] = zeros
    padded_scales = torch.zeros(outputs, 8 * width, dtype=torch.float16)
    padded_scales[:, :groups] = scales.T
    return {
        "qweight": torch.from_numpy(np.ascontiguousarray(stream(levels.T, 4).T)),
        "qzeros": torch.from_numpy(np.ascontiguousarray(stream(padded_zeros, 4).T)),
        "scales": padded_scales,
    }


def awq_gemv_fast(levels: np.ndarray, zeros: np.ndarray, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """Column by column of words by the format's index map, of every fourth output at once."""
    outputs, inputs = levels.shape
    order = [8 * (at % 4) + at // 4 for at in range(32)]
    words = np.zeros((outputs // 4, inputs), dtype=np.uint16)
    for column in range(inputs):
        block, t = divmod(column, 64)
        for nibble in range(4):
            position = 64 * block + 4 * (t % 16) + nibble
            real = 32 * (position // 32) + order[position % 32]
            words[:, column] |= levels[t // 16 :: 4, real].astype(np.uint16) << np.uint16(4 * nibble)
    groups = len(zeros)
    width = 8 * -(-groups // 8)
    padded = torch.zeros(width, outputs, dtype=torch.float16)
    padded[:groups] = scales
    products = torch.zeros(width, outputs, dtype=torch.float16)
    products[:groups] = -(scales.float() * torch.from_numpy(zeros).float())
    return {"qweight": torch.from_numpy(words.view(np.int16)), "qzeros": products, "scales": padded}


def _interleaved(values: np.ndarray) -> torch.Tensor:
    rows, columns = values.shape
    words = np.zeros((rows, columns // 8), dtype=np.uint32)
    for word in range(columns // 8):
        for nibble in range(8):
            words[:, word] |= values[:, 8 * word + ORDER[nibble]].astype(np.uint32) << np.uint32(4 * nibble)
    return torch.from_numpy(words.view(np.int32))


def layer(
    outputs: int, inputs: int, groups: int, bits: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Random levels ``[out, in]``, zeros ``[groups, out]`` from 1 on, and float16 scales ``[groups, out]``."""
    random = np.random.default_rng(seed)
    levels = random.integers(0, 2**bits, (outputs, inputs))
    zeros = random.integers(1, 2**bits, (groups, outputs))
    scales = torch.from_numpy(random.uniform(0.001, 0.02, (groups, outputs))).half()
    return levels, zeros, scales


def nearest(
    dense: torch.Tensor, random: np.random.Generator, *, bits: int = 4, size: int = 64, ordered: bool = False
) -> tuple[np.ndarray, np.ndarray, torch.Tensor, np.ndarray]:
    """Levels, zeros, float16 scales and groups near a weight, by the nearest level; ``ordered`` scatters the groups."""
    inputs = dense.shape[1]
    group = np.arange(inputs) // size
    group = random.permutation(group) if ordered else group
    groups, top = inputs // size, 2**bits - 1
    scales = torch.zeros(groups, len(dense))
    zeros = np.zeros((groups, len(dense)), dtype=np.int64)
    levels = np.zeros(dense.shape, dtype=np.int64)
    for at in range(groups):
        part = dense[:, torch.from_numpy(group == at)]
        low, high = part.min(1).values.clamp(max=0), part.max(1).values.clamp(min=0)
        scales[at] = ((high - low) / top).half().float()
        zero = (-low / scales[at]).round().clamp(1, top)
        zeros[at] = zero.numpy()
        levels[:, group == at] = (part / scales[at][:, None] + zero[:, None]).round().clamp(0, top).numpy()
    return levels, zeros, scales, group


def weight(levels: np.ndarray, zeros: np.ndarray, scales: torch.Tensor, group: np.ndarray) -> torch.Tensor:
    """The reference arithmetic, in float64 and then float32."""
    exact = scales.double().numpy()[group].T * (levels - zeros[group].T)
    return torch.from_numpy(exact).float()


NF4 = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626)
NF4 += (0.723, 1.0)


def nf4(weight: torch.Tensor, block: int = 64) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A layer as bitsandbytes keeps it in four bits, each value the nearest of its table, and what it stands for."""
    table, flat = torch.tensor(NF4), weight.reshape(-1, block)
    scales = flat.abs().amax(1)
    levels = ((flat / scales[:, None]).reshape(-1, 1) - table).abs().argmin(1)
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": list(weight.shape)}
    tensors = {
        "weight": (levels[0::2] * 16 + levels[1::2]).to(torch.uint8).reshape(-1, 1),
        "weight.absmax": scales,
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return tensors, (table[levels].reshape(-1, block) * scales[:, None]).reshape(weight.shape)


def int8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A layer as bitsandbytes keeps it in eight bits, a scale a row, and what it stands for."""
    highest = weight.abs().amax(1)
    levels = (weight / highest[:, None] * 127).round()
    return {"weight": levels.to(torch.int8), "SCB": highest}, levels * highest[:, None] / 127
