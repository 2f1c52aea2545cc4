"""Blocks written as gguf-py writes them, and levels that come back as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gguf
from trifocal.errors import UsageError
from trifocal.gguf import writing
from trifocal.gguf.container import GgufFile
from trifocal.gguf.encoding import KINDS, encode, on_grid
from trifocal.gguf.ggml import TYPES, dequantise
from trifocal.gguf.writing import Entry, write

BY_NAME = {kind.name: kind for kind in TYPES.values()}


def read(kind: str, data: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return dequantise(data.numpy(), BY_NAME[kind], torch.float32).reshape(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_gguf_py(kind: str) -> None:
    values = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))
    values[0], values[1, :32], values[2, 0] = 0, 0.25, 1e-9
    theirs = gguf.quantize(values.numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(encode(values, kind).numpy(), theirs.reshape(-1).view(np.uint8))


GRIDS = {  # kind: bits of the levels, and where zeros lie
    "Q4_0": (4, (8, 9)),
    "Q4_1": (4, (1, 17)),
    "Q8_0": (8, (128, 129)),
}


@pytest.mark.parametrize("wanted", GRIDS)
def test_levels_keep_their_grid(wanted: str) -> None:
    bits, (low, high) = GRIDS[wanted]
    random = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 2**bits, (16, 256), generator=random).to(torch.uint8)
    scales = (torch.rand(16, 8, generator=random) / 100).half().float()
    zeros = torch.randint(low, high, (16, 8), generator=random).float()
    made = on_grid(levels, scales, zeros)
    assert made is not None
    kind, data = made
    assert kind == wanted
    exact = (scales[..., None] * (levels.reshape(16, 8, 32).float() - zeros[..., None])).reshape(16, 256)
    offset = 0 if wanted != "Q4_1" else float((scales * zeros).max()) * 2**-11
    assert float((read(kind, data, (16, 256)) - exact).abs().max()) <= offset + 1e-9


def test_three_bits_with_zeros_in_the_middle_are_four_bits_around_eight() -> None:
    levels = torch.arange(8).repeat(4, 4).to(torch.uint8)
    kind, data = on_grid(levels, torch.full((4, 1), 0.5), torch.full((4, 1), 4.0)) or ("", torch.empty(0))
    assert kind == "Q4_0"
    assert torch.equal(read(kind, data, (4, 32)), 0.5 * (levels.float() - 4))


def test_what_float16_cannot_hold_is_on_no_grid() -> None:
    levels = torch.ones(4, 32, dtype=torch.uint8)
    assert on_grid(levels, torch.full((4, 1), 1e6), torch.full((4, 1), 8.0)) is None
    assert on_grid(levels * 200, torch.full((4, 1), 0.1), torch.full((4, 1), 0.5)) is None


def test_a_file_is_what_both_readers_say(tmp_path: Path) -> None:
    values = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    metadata = {"general.architecture": "llama", "llama.block_count": 2, "one": 0.5, "is": True}
    entries = [
        Entry("a.weight", (6, 64), lambda: ("Q8_0", encode(values, "Q8_0"))),
        Entry("b.weight", (7,), lambda: ("F16", encode(torch.arange(7.0), "F16"))),
        Entry("c.weight", (6, 64), lambda: ("F32", encode(values, "F32"))),
    ]
    told: list[tuple[int, int]] = []
    file = tmp_path / "new" / "made.gguf"
    write(file, metadata, entries, tell=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [entry.name for entry in file.parent.iterdir()] == ["made.gguf"]
    ours, theirs = GgufFile(file), gguf.GGUFReader(file)
    assert dict(ours.metadata) == metadata
    assert torch.equal(ours["c.weight"], values)
    assert torch.equal(ours["b.weight"], torch.arange(7.0).half())
    for tensor in theirs.tensors:
        assert np.array_equal(
            gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1), ours[tensor.name].float().reshape(-1).numpy()
        )


def test_no_room_and_no_right_to_write_are_said_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [Entry("a.weight", (7,), lambda: ("F32", encode(torch.arange(7.0), "F32")))]
    with pytest.raises(UsageError, match="has room for"):
        write(tmp_path / "made.gguf", {}, entries, room=1 << 60)
    (tmp_path / "in the way").write_text("a file")
    with pytest.raises(UsageError, match="can't be written"):
        write(tmp_path / "in the way" / "made.gguf", {}, entries)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        write(tmp_path / "made.gguf", {}, entries)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in the way"]
