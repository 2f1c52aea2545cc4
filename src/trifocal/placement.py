"""Where a part of the system lives: its device and its precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from trifocal.errors import UnknownName, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "Part", "Placed", "Placement"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = (
    "auto",
    "cpu",
    "cuda",
    "mps",
    "xpu",
    "hpu",
    "mtia",
    "npu",
    "xla",
    "vulkan",
    "meta",
    "privateuseone",
)  # torch's
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
        """``cuda:0``, ``bfloat16`` or both as ``cuda:0/bfloat16``; a language model's devices may stand behind commas.

        Raises:
            UnknownName: a word that is neither a device nor a dtype.
            UsageError: two of one of them.
        """
        words = [word for word in text.split("/") if word]
        dtypes = [word for word in words if word != "auto" and (word in DTYPES or word in _BITS)]
        devices = [word for word in words if word != "auto" and word not in dtypes]
        for word in devices:
            for name in word.split(","):
                if name.strip() and name.split(":")[0].strip() not in DEVICES:
                    raise UnknownName("device or dtype", word, [*DEVICES, *DTYPES[1:]])
        if len(dtypes) > 1 or len(devices) > 1:
            raise UsageError(f"{text!r}: one device and one dtype were expected, such as cuda:0/bfloat16")
        return cls("".join(devices) or "auto", "".join(dtypes) or "auto")

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
