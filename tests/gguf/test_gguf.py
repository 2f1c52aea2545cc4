"""The GGUF container: what gguf-py writes is read back, and damage of every kind is told at once."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_maker
import numpy as np
import pytest
import torch

import gguf
from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile

Entry = tuple[str, tuple[int, ...], int, int]


def test_every_kind_of_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"x.{name}", 7 if name.startswith("u") else -7)
    writer.add_float32("x.float32", 0.5)
    writer.add_float64("x.float64", 0.1)
    writer.add_bool("x.bool", True)
    writer.add_string("x.text", "caf\u00e9")
    writer.add_array("x.texts", ["a", "", "b"])
    writer.add_array("x.numbers", [1, 2, 3])
    writer.add_array("x.floats", [0.5, 1.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GgufFile(path).metadata
    assert [read[f"x.{name}"] for name in ("uint8", "int8", "uint64", "int64")] == [7, -7, 7, -7]
    assert (read["x.float32"], read["x.float64"], read["x.bool"], read["x.text"]) == (0.5, 0.1, True, "caf\u00e9")
    assert (read["x.texts"], read["x.numbers"], read["x.floats"]) == (["a", "", "b"], [1, 2, 3], [0.5, 1.5])


def test_tensors_keep_their_type_and_shape(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    tensors = {"plain": (values, "F32"), "half": (values, "F16"), "brain": (values, "BF16"), "packed": (values, "Q8_0")}
    path = gguf_maker.write(tmp_path / "a.gguf", {"general.architecture": "llama"}, tensors)
    file = GgufFile(path)
    assert list(file) == list(tensors)
    assert [file[name].dtype for name in tensors] == [torch.float32, torch.float16, torch.bfloat16, torch.float32]
    assert torch.equal(file["plain"], torch.from_numpy(values))
    assert torch.equal(file["half"], torch.from_numpy(values).half())
    assert torch.equal(file["brain"], torch.from_numpy(values).bfloat16())
    assert file["packed"].shape == (3, 64)
    assert (file["packed"] - torch.from_numpy(values)).abs().max() < 0.02


def test_parts_read_as_one_file(tmp_path: Path) -> None:
    for part in (1, 2):
        metadata = {"general.architecture": "llama", "split.count": 2}
        path = tmp_path / f"m-0000{part}-of-00002.gguf"
        gguf_maker.write(path, metadata, {f"t{part}": (np.full((1, 4), part), "F32")})
    file = GgufFile(tmp_path / "m-00001-of-00002.gguf")
    assert [file[name][0, 0].item() for name in file] == [1.0, 2.0]
    with pytest.raises(CheckpointError, match="name the first"):
        GgufFile(tmp_path / "m-00002-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"00002\.gguf: is missing"):
        GgufFile(tmp_path / "m-00001-of-00002.gguf")


def raw(
    entries: list[Entry] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    pairs: bytes = b"",
    counts: tuple[int, int] | None = None,
    body: int = 64,
) -> bytes:
    """A file by hand, so that each field can be wrong."""
    entries = [("t", (4,), 0, 0)] if entries is None else entries
    head = (
        magic + struct.pack("<I", version) + struct.pack("<QQ", *(counts or (len(entries), 1 if pairs else 0))) + pairs
    )
    for name, dims, kind, offset in entries:
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return head + bytes(-len(head) % 32) + bytes(body)


def text(value: str | bytes) -> bytes:
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def test_the_handmade_file_is_sound(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(raw())
    assert GgufFile(tmp_path / "a.gguf")["t"].tolist() == [0.0] * 4
    (tmp_path / "b.gguf").write_bytes(raw(version=2))
    assert len(GgufFile(tmp_path / "b.gguf")) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "can't be read"),
        (b"GG", "cut short"),
        (raw(magic=b"PK\x03\x04"), "is no GGUF file"),
        (raw(version=1), "GGUF version 1"),
        (raw(version=0x03000000), "big-endian GGUF 3"),
        (raw(counts=(2**40, 0)), "entries, but only"),
        (raw(counts=(1, 2**62)), "entries, but only"),
        (raw(pairs=text("k") + struct.pack("<I", 99)), "'k' has a value of the unknown type 99"),
        (raw(pairs=text("k") + struct.pack("<IIQ", 9, 4, 2**50)), "entries, but only"),
        (raw(pairs=text("k") + struct.pack("<IIQ", 9, 8, 2**50)), "entries, but only"),
        (raw(pairs=text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9), "unknown type 9"),
        (raw(pairs=text(b"\xff\xfe") + struct.pack("<II", 4, 1)), "no UTF-8"),
        (raw(pairs=text("general.alignment") + struct.pack("<II", 4, 3)), "general.alignment is 3"),
        (raw(pairs=text("general.alignment") + struct.pack("<II", 4, 0)), "general.alignment is 0"),
        (raw([("t", (4,), 77, 0)]), "tensor 't' has the ggml type 77"),
        (raw([("t", (4,), 2, 0)]), r"of shape \[4\] can't be Q4_0"),
        (raw([("t", (0,), 0, 0)]), r"of shape \[0\]"),
        (raw([("t", (), 0, 0)]), r"of shape \[\]"),
        (raw([("t", (4, 4, 4, 4, 4), 0, 0)]), "has 5 dimensions"),
        (raw([("t", (4,), 0, 8)]), "starts at 8, which is no multiple of 32"),
        (raw([("t", (400,), 0, 0)]), "ends at byte .* cut short"),
        (raw([("t", (2**62, 8), 0, 0)]), "ends at byte .* cut short"),
        (raw([("t", (4,), 0, 2**60)]), "ends at byte .* cut short"),
        (raw([("t", (4,), 0, 0), ("t", (4,), 0, 32)]), "stands in the table twice"),
        (raw([("t", (16,), 0, 0), ("u", (4,), 0, 32)]), "share bytes"),
    ],
)
def test_damage_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=told) as error:
        GgufFile(path)
    assert str(error.value).startswith(f"{path}: ")


def test_types_that_llama_cpp_alone_computes_with_are_told_when_they_are_read(tmp_path: Path) -> None:
    """So that llama.cpp itself may run a file that holds them: IQ3_M's, of SmolLM2 say, has IQ4_NL and IQ3_S."""
    path = tmp_path / "m.gguf"
    path.write_bytes(raw([("t", (256,), 21, 0)], body=128))
    file = GgufFile(path)
    assert (file.info("t").kind.name, file.info("t").shape) == ("IQ3_S", (256,))
    with pytest.raises(CheckpointError, match=r"'t' is IQ3_S, with which the engine llamacpp alone.*IQ4_XS"):
        file["t"]


def test_no_cut_of_a_good_file_goes_unnoticed(tmp_path: Path) -> None:
    tensors: dict[str, tuple[Any, str]] = {"a": (np.ones((2, 32)), "Q8_0"), "b": (np.ones((8,)), "F32")}
    path = gguf_maker.write(tmp_path / "a.gguf", gguf_maker.LANGUAGE, tensors)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 32, 7):  # the last 32 bytes may be padding
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            GgufFile(path)


@pytest.mark.parametrize("call", [lambda file: file["x"], lambda file: file.info("x")])
def test_a_tensor_that_is_not_there_is_a_key_error(tmp_path: Path, call: Callable[[GgufFile], Any]) -> None:
    (tmp_path / "a.gguf").write_bytes(raw())
    with pytest.raises(KeyError):
        call(GgufFile(tmp_path / "a.gguf"))
