"""Where a part of the system lives: its device and its precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from trifocal.errors import UnknownName, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "Part", "Placed", "Placement"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
_BITS = {"32": "float32", "16": "float16", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Placement:
    """A device (``auto``, ``cpu``, ``cuda:0``, ``mps``, ...) and a dtype (one of `DTYPES`).

    ``auto`` is the first CUDA device, else Apple's ``mps``, else the CPU; the ``auto`` dtype is
    float32 on the CPU, where half precision is slow or missing, and float16 elsewhere.

    Raises:
        UnknownName: a dtype that is not in `DTYPES`.
    """

    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _BITS.get(self.dtype, self.dtype))
        if self.dtype not in DTYPES:
            raise UnknownName("dtype", self.dtype, list(DTYPES))

    @classmethod
    def parse(cls, text: str) -> Placement:
        """``cuda:0``, ``bfloat16`` or both as ``cuda:0/bfloat16``."""
        device, dtype = "auto", "auto"
        for word in filter(None, text.split("/")):
            if word in DTYPES or word in _BITS:
                dtype = word
            else:
                device = word
        return cls(device, dtype)

    def resolve(self) -> tuple[torch.device, torch.dtype]:
        """The device and dtype meant, on this machine.

        Raises:
            UsageError: torch knows no such device, or this machine has none.
        """
        import torch

        name = self.device
        if name == "auto":
            name = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UsageError(f"no device is called {name!r}; say cpu, cuda:0 or mps") from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(
                f"{name}: torch sees {torch.cuda.device_count()} CUDA devices; say cpu or install a CUDA build of torch"
            )
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise UsageError("mps: this machine has no Apple GPU that torch can use; say cpu")
        if self.dtype == "auto":
            return device, torch.float32 if device.type == "cpu" else torch.float16
        return device, getattr(torch, self.dtype)

    def __str__(self) -> str:
        return f"{self.device}/{self.dtype}"


@dataclass(frozen=True, slots=True)
class Part:
    """A part as it is loaded: ``tower``, ``projector`` or ``language``, what it is, where, and its weights' bytes."""

    name: str
    what: str
    device: str
    dtype: str
    nbytes: int


@runtime_checkable
class Placed(Protocol):
    """What has loaded parts and can tell where they are."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its parts, in the order in which a picture goes through them."""
        ...
