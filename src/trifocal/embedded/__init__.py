"""Pictures that somebody else saw already: rows of the embedding space, read from bytes of which nothing is run."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trifocal.embedded.files import Stored, read_safetensors, read_torch
from trifocal.errors import BadImage
from trifocal.images import Image, Limits

if TYPE_CHECKING:
    import torch

__all__ = ["MOST_ROWS", "Embedded", "embedded", "from_base64", "from_bytes"]

MOST_ROWS = 65_536  # of one picture
FACTS = "trifocal"  # where a safetensors file says of which vision its rows are, and their digest
LIMITS = Limits()


class _NoPixels:
    """What stands where pixels would be: who wants to look at them is told that there are none."""

    def __getattr__(self, name: str) -> Any:
        raise BadImage("embedded", "it came as embeddings and has no pixels to look at")


@dataclass(frozen=True, eq=False)
class Embedded(Image):
    """A picture without pixels: ``rows`` are ``[positions, hidden]``, finite, on the CPU.

    It stands wherever an `Image` stands. ``identity`` is that of the vision that made the rows, where it was told: then
    a model with another vision refuses them.
    """

    rows: torch.Tensor = field(kw_only=True)
    identity: str | None = field(default=None, kw_only=True)

    @cached_property
    def digest(self) -> str:
        """The sha256 over precision, shape and bits of the rows, marked so that no picture has it."""
        return f"rows {_digest(self.rows)}"

    def __hash__(self) -> int:
        return hash(self.digest)

    def to_safetensors(self) -> bytes:
        """The rows as `from_bytes` reads them, with their identity and their digest."""
        from safetensors.torch import save

        facts = {"identity": self.identity, "digest": self.digest.removeprefix("rows ")}
        return save({"image_embeds": self.rows.contiguous()}, {FACTS: json.dumps(facts)})


def embedded(rows: torch.Tensor, *, identity: str | None = None, name: str = "image") -> Embedded:
    """A picture that is these rows, ``[positions, hidden]`` or ``[1, positions, hidden]`` in a floating precision.

    Raises:
        BadImage: they are of another shape or precision, none or too many, or not finite.
    """
    import torch

    if rows.layout != torch.strided or rows.is_quantized:
        raise BadImage("bad_embeds", "embeddings are a dense tensor", name)
    if rows.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise BadImage("bad_embeds", f"embeddings are float32, float16 or bfloat16, not {_word(rows.dtype)}", name)
    held = rows.detach().cpu()
    held = held[0] if held.dim() == 3 and held.shape[0] == 1 else held
    if held.dim() != 2 or not 1 <= held.shape[0] <= MOST_ROWS or not held.shape[1]:
        shape = list(rows.shape)[:8]
        raise BadImage("bad_embeds", f"embeddings are [positions, width], up to {MOST_ROWS} of them, not {shape}", name)
    held = held.contiguous()
    if not bool(torch.isfinite(held).all()):
        raise BadImage("bad_embeds", "there are embeddings that are no finite numbers", name)
    return Embedded(_NoPixels(), name, rows=held, identity=identity)  # type: ignore[arg-type]


def from_base64(text: str, *, name: str = "image", limits: Limits = LIMITS) -> Embedded:
    """The picture in base64 of what `from_bytes` reads; its size is known before it is decoded.

    Raises:
        BadImage: it is no base64, too large, or refused by `from_bytes`.
    """
    _check_size(len(text) * 3 // 4 - text[-2:].count("="), limits, name)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage("bad_embeds", "embeddings are base64 without line breaks", name) from error
    return from_bytes(data, name=name, limits=limits)


def from_bytes(data: bytes, *, name: str = "image", limits: Limits = LIMITS) -> Embedded:
    """The picture in a safetensors file of one tensor, or in what ``torch.save`` makes of one tensor.

    Neither is unpickled: of torch's files those bytes are read that a plain tensor has, and any other refused.

    Raises:
        BadImage: it is neither, larger than ``limits.bytes``, or rows that `embedded` refuses.
    """
    _check_size(len(data), limits, name)
    if limits.taking is not None:
        limits.taking(len(data))
    try:
        stored, facts = (read_torch(data), {}) if data[:2] == b"PK" else read_safetensors(data)
    except ValueError as error:
        raise BadImage("bad_embeds", str(error), name) from error
    found = embedded(_tensor(stored), identity=_identity(facts, name), name=name)
    told = facts.get("digest")
    if told is not None and told != found.digest.removeprefix("rows "):
        raise BadImage("bad_embeds", "the embeddings that came are not those that were sent: another digest", name)
    return found


def _tensor(stored: Stored) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(stored.data), dtype=getattr(torch, stored.dtype)).reshape(stored.shape)


def _identity(facts: dict[str, Any], name: str) -> str | None:
    identity = facts.get("identity")
    if identity is not None and not isinstance(identity, str):
        raise BadImage("bad_embeds", "the identity of a vision is a text", name)
    return identity


def _check_size(size: int, limits: Limits, name: str) -> None:
    if size > limits.bytes:
        raise BadImage("too_many_bytes", f"{size} bytes of embeddings; allowed are {limits.bytes}", name)


def _digest(rows: torch.Tensor) -> str:
    import torch

    digest = hashlib.sha256(f"{rows.dtype} {tuple(rows.shape)}\n".encode())
    digest.update(rows.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
