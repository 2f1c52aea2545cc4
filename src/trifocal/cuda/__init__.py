"""Kernels compiled for the card at hand by NVRTC, which CUDA builds of torch bring, and launched by the driver."""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import os
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from trifocal.errors import EngineError

__all__ = [
    "Kernel",
    "Macros",
    "Source",
    "captured",
    "compiled",
    "give_back",
    "hopper",
    "prepare",
    "shared_memory",
    "supported",
]

Macros = tuple[tuple[str, int | str], ...]
Source = tuple[str, Macros]  # a file of kernels, and the macros with which it is compiled
_LARGE = 48 << 10  # bytes of shared memory that a kernel has without asking
_SHARED_LIMIT, _PROGRAMMATIC = 8, 6  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_LAUNCH_ATTRIBUTE_...
_SHARED = 81  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
_ARGUMENTS = 16  # of a kernel, at the most
_capturing = threading.Lock()  # a capture begins by waiting for the whole card, which another one's would refuse


def supported(device: torch.device) -> bool:
    """Whether the kernels run there: NVIDIA from sm_80 on, with a compiler that torch brings."""
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        _nvrtc()
    except OSError:
        return False
    return True


def hopper(device: torch.device) -> bool:
    """Whether it is a Hopper card, of whose own products there are kernels, and e4m3's were tried."""
    return device.type == "cuda" and bool(torch.version.cuda) and torch.cuda.get_device_capability(device) == (9, 0)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that the blocks of a processor have together, with 1 KiB of each that CUDA keeps."""
    index = torch.cuda.current_device() if device.index is None else device.index
    told = ctypes.c_int()
    _check(_driver().cuDeviceGetAttribute(ctypes.byref(told), _SHARED, index), "cuDeviceGetAttribute")
    return told.value


class Kernel:
    """A kernel with its block; called with a grid and its arguments, on torch's current stream.

    Tensors go as their address, ints as int32, floats as float32, None as no address. Launched so that it may start
    while the kernel before it ends, on cards that can do that.
    """

    def __init__(self, image: bytes, name: str, threads: int, shared: int, device: torch.device) -> None:
        self._image, self._threads, self._shared = image, threads, shared
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(module), image), "cuModuleLoadData")
        _check(_driver().cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()), name)
        if shared > _LARGE:
            _check(_driver().cuFuncSetAttribute(self._function, _SHARED_LIMIT, shared), "cuFuncSetAttribute")
        early = torch.cuda.get_device_capability(device) >= (9, 0)
        attribute = _Attribute(_PROGRAMMATIC, 0, (ctypes.c_int * 16)(1)) if early else None
        held = ctypes.addressof(attribute) if attribute else None
        self._attribute = attribute  # the driver reads it at every launch
        self._config = _Config(1, 1, 1, threads, 1, 1, shared, None, held, int(early))
        self._device = torch.cuda.current_device() if device.index is None else device.index
        self._launch = _driver().cuLaunchKernelEx
        self._values = (ctypes.c_uint64 * _ARGUMENTS)()  # one word an argument, however narrow it is
        first = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * _ARGUMENTS)(*[first + 8 * at for at in range(_ARGUMENTS)])
        self._lock = threading.Lock()  # the driver copies all of it before the launch returns

    def __call__(self, grid: tuple[int, int, int], *arguments: torch.Tensor | int | float | None) -> None:
        words = [_word(argument) for argument in arguments]
        with self._lock:
            config = self._config
            config.grid_x, config.grid_y, config.grid_z = grid
            config.stream = torch._C._cuda_getCurrentRawStream(self._device)
            struct.pack_into(f"<{len(words)}Q", self._values, 0, *words)
            code = self._launch(ctypes.byref(config), self._function, self._pointers, None)
        if code:
            _check(code, "cuLaunchKernelEx")


@functools.cache
def compiled(file: str, macros: Macros, name: str, threads: int, shared: int, device: torch.device) -> Kernel:
    """A kernel of ``kernels/<file>.cu``, compiled with these macros; images are kept in the user's cache folder."""
    return Kernel(image(file, macros, device), name, threads, shared, device)


def captured(run: Callable[[], torch.Tensor], memory: Any) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """What ``run`` does on the current device as a graph, and the tensor that a replay writes; it is run once before.

    ``memory`` is a pool of graphs of which no two run at once, and no two that are captured on one stream may: they
    share what products need besides. It is the current one, or the card's for all whose current stream is its default.
    While this is under way nobody may wait for the whole card (`torch.cuda.synchronize`), but for streams and events.
    """
    with _capturing:
        run()  # what is made at first use is made now
        own = torch.cuda.current_stream()
        own.synchronize()
        stream = _capturing_stream(torch.cuda.current_device()) if own == torch.cuda.default_stream() else own
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(own),  # torch's own context stays on its stream where a capture can't be ended
            torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"),
        ):
            given = run()
    return graph, given


def give_back() -> None:
    """Gives the memory that torch keeps for later back to the cards, once nobody captures: torch may refuse it then."""
    with _capturing:
        torch.cuda.empty_cache()


def prepare(wanted: list[Source], device: torch.device) -> None:
    """Compiles several files side by side, so that `compiled` need not."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda one: image(*one, device), dict.fromkeys(wanted)))


@functools.cache
def image(file: str, macros: Macros, device: torch.device) -> bytes:
    """The machine code of a file with macros, from the cache folder or compiled now.

    Raises:
        EngineError: it does not compile; the compiler's words are in the message.
    """
    major, minor = torch.cuda.get_device_capability(device)
    folder = resources.files("trifocal.cuda") / "kernels"
    source = "".join((folder / f"{part}.cu").read_text("utf-8") for part in ("common", file))
    options = [f"--gpu-architecture=sm_{major}{minor}{'a' if major >= 9 else ''}", "--std=c++17", "-default-device"]
    options += [f"-D{key}={value}" for key, value in macros]
    key = hashlib.sha256("\0".join([source, *options, str(torch.version.cuda)]).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trifocal" / "kernels" / f"{key}.cubin"
    try:
        return cache.read_bytes()
    except OSError:
        made = _compiled(source, options)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        part.write_bytes(made)
        part.replace(cache)
    except OSError:
        pass  # a home that can't be written costs a compilation a start
    return made


def _compiled(source: str, options: list[str]) -> bytes:
    nvrtc, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"trifocal.cu", 0, None, None)
    words = [option.encode() for option in options]
    failed = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
    if failed:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise EngineError(f"the kernels do not compile for this card: {log.value.decode(errors='replace')[:2000]}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    made = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, made)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return made.raw


@functools.cache
def _capturing_stream(card: int) -> torch.cuda.Stream:
    """One a card; torch's own one is on the first card that was captured on, whichever is the current one."""
    return torch.cuda.Stream(card)  # type: ignore[no-untyped-call]


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16))


class _Config(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    )


def _word(value: torch.Tensor | int | float | None) -> int:
    """An argument as the low bytes of a word."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFFFFFFFF
    return int.from_bytes(struct.pack("<f", value), "little")


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")


@functools.cache
def _nvrtc() -> Any:
    """The compiler's library: that of torch's own wheels first, then the system's."""
    major = str(torch.version.cuda).split(".")[0]
    site = Path(torch.__file__).parents[1] / "nvidia"
    names = [f"libnvrtc.so.{major}", *sorted(glob.glob(f"{site}/*/lib/libnvrtc.so.{major}*"))]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("no NVRTC was found beside torch")


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise EngineError(f"the card refused {what}: {(text.value or b'error').decode()} ({code})")
