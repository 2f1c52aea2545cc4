"""Seeing: preprocessing, tower and projector, each where it was placed, and a cache of what was seen."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image as Pictures
from torch import nn
from torch.nn import functional

from trifocal.checkpoints import Checkpoint, Preprocessing, Tower
from trifocal.errors import CheckpointError, OutOfMemory
from trifocal.images import Image
from trifocal.placement import Placement
from trifocal.timing import Timings
from trifocal.weights import Weights, part_weights

__all__ = ["PROJECTORS", "ClipTower", "ClipVision", "FeatureCache", "Vision", "load_vision", "pixels", "shown"]

log = logging.getLogger("trifocal")
BATCH = 8
_NO_ROOM = re.compile(r"can't allocate memory|out of memory")
PartT = TypeVar("PartT", bound=nn.Module)


class Vision(Protocol):
    """Sees pictures: from `Image` to rows of the language model's embedding space."""

    @property
    def hidden(self) -> int:
        """The width of the rows."""
        ...

    @property
    def identity(self) -> str:
        """A digest of everything but the picture that the rows depend on."""
        ...

    def encode(self, images: Sequence[Image], timings: Timings | None = None) -> list[torch.Tensor]:
        """Rows of each picture, ``[positions, hidden]``, in order."""
        ...

    def positions(self, image: Image) -> int:
        """How many rows a picture will have; it is not looked at."""
        ...

    def cached(self, image: Image) -> bool:
        """Whether a picture's rows are known already."""
        ...


class FeatureCache:
    """Rows of the pictures that were seen last, at most ``limit`` bytes of them. Threads share it."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._rows: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.RLock()

    def fill(self, images: Sequence[Image], see: Callable[[list[Image]], list[torch.Tensor]]) -> list[torch.Tensor]:
        """The rows of the pictures in order; those not known are seen, each once, and remembered.

        One lock around look-up and seeing: two requests with one picture see it once.
        """
        with self._lock:
            known = {image.digest: self._rows[image.digest] for image in images if image.digest in self._rows}
            new = list({image.digest: image for image in images if image.digest not in known}.values())
            seen = dict(zip((image.digest for image in new), see(new), strict=True)) if new else {}
            for digest in (image.digest for image in images):
                self._keep(digest, known.get(digest, seen.get(digest)))
            return [known[image.digest] if image.digest in known else seen[image.digest] for image in images]

    def __contains__(self, image: Image) -> bool:
        with self._lock:
            return image.digest in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._held

    def _keep(self, digest: str, rows: torch.Tensor | None) -> None:
        assert rows is not None
        if digest not in self._rows:
            self._rows[digest] = rows
            self._held += rows.nbytes
        self._rows.move_to_end(digest)
        while self._held > self._limit:
            _, gone = self._rows.popitem(last=False)
            self._held -= gone.nbytes


class ClipTower(nn.Module):
    """CLIP's vision transformer up to the block whose output LLaVA takes; the blocks after it are not built.

    Parameter names are those of ``CLIPVisionModel`` without its prefix.
    """

    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.encoder = _Encoder(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``[images, 3, side, side]`` to ``[images, patches, hidden]``: class token first, if it is kept."""
        hidden: torch.Tensor = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)))
        return hidden if self.config.keep_class else hidden[:, 1:]


class _Embeddings(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        patch = config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(config.hidden))
        self.patch_embedding = nn.Conv2d(3, config.hidden, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, config.hidden)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        grid = self.patch_embedding(pixel_values)  # [images, hidden, rows, columns]
        patches = grid.flatten(2).transpose(1, 2)  # [images, patches, hidden]
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class _Encoder(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.blocks))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            hidden = block(hidden)
        return hidden


class _Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.v_proj, self.out_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(rows: torch.Tensor) -> torch.Tensor:  # [images, heads, patches, head]
            return rows.view(*rows.shape[:-1], self.heads, -1).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        )
        out: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(config.hidden, config.mlp), nn.Linear(config.mlp, config.hidden)
        self.act = activation(config.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden, eps=config.eps)
        self.self_attn = _Attention(config.hidden, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden, eps=config.eps)
        self.mlp = _Mlp(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: torch.Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class ClipVision:
    """A CLIP tower and a projector, each on its own placement, with a cache behind them."""

    def __init__(
        self,
        tower: ClipTower,
        projector: nn.Module,
        preprocessing: Preprocessing,
        *,
        hidden: int,
        identity: str,
        cache: FeatureCache,
    ) -> None:
        self.tower, self.projector, self.preprocessing = tower, projector, preprocessing
        self.hidden, self.identity, self.cache = hidden, identity, cache

    def encode(self, images: Sequence[Image], timings: Timings | None = None) -> list[torch.Tensor]:
        """Rows of each picture, ``[positions, hidden]``, in order.

        Raises:
            OutOfMemory: the tower's or the projector's device has no room.
        """
        timings = Timings() if timings is None else timings
        return self.cache.fill(images, lambda new: self._see(new, timings))

    def positions(self, image: Image) -> int:
        """Every picture takes as many: the tower's patches."""
        return self.tower.config.patches

    def cached(self, image: Image) -> bool:
        """Whether a picture's rows are known already."""
        return image in self.cache

    @torch.inference_mode()
    def _see(self, images: list[Image], timings: Timings) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            with timings.step("preprocess"):
                values = torch.stack([pixels(image, self.preprocessing) for image in batch])
            with timings.step("tower"), _room("vision tower"):
                features = self.tower(_on(values, self.tower))  # [images, patches, width]
            with timings.step("projector"), _room("projector"):
                rows = self.projector(_on(features, self.projector))  # [images, positions, hidden]
            seen += rows.unbind()
        return [rows.clone() for rows in seen]


def shown(image: Image, preprocessing: Preprocessing) -> Pictures.Image:
    """What the model is shown of a picture: ``size`` x ``size`` RGB, after padding, resizing and cropping.

    Bicubic on 8-bit values and truncated sizes, as CLIP's own processor does it; the padding is that
    of LLaVA 1.5 (``expand2square``).
    """
    picture = image.on(preprocessing.background)
    if preprocessing.fit == "pad":
        picture = _padded(picture, preprocessing.pad_colour)
    size, (width, height) = preprocessing.size, picture.size
    short = min(width, height)
    wide, high = (size, size * height // width) if width == short else (size * width // height, size)
    resized = picture.resize((wide, high), Pictures.Resampling(preprocessing.resample))
    left, top = (wide - size) // 2, (high - size) // 2
    return resized.crop((left, top, left + size, top + size))


def pixels(image: Image, preprocessing: Preprocessing) -> torch.Tensor:
    """The pixel values of a picture, ``[3, size, size]`` in float32."""
    values = np.asarray(shown(image, preprocessing), dtype=np.float32) * np.float32(preprocessing.rescale)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return torch.from_numpy(((values - mean) / std).transpose(2, 0, 1).copy())


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation of that name, as transformers spells them.

    Raises:
        CheckpointError: no LLaVA has one of that name.
    """
    known: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "gelu": functional.gelu,
        "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "linear": lambda x: x,
    }
    if name not in known:
        raise CheckpointError(f"activation {name!r} is not known; known: {', '.join(sorted(known))}")
    return known[name]


class _Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._act = activation(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._act(x)


def _linear(weights: Weights, act: str, kind: str) -> nn.Module:
    """One linear layer; its shape is that of its weights."""
    return _layer(weights, "")


def _mlp(weights: Weights, act: str, kind: str) -> nn.Module:
    """n linear layers with an activation between them: ``0``, ``2``, ... ``2(n-1)`` in the weights."""
    count = int(kind.removeprefix("mlp").removesuffix("x"))
    layers: list[nn.Module] = []
    for at in range(count):
        layers += [_layer(weights, f"{2 * at}."), _Activation(act)]
    return nn.Sequential(*layers[:-1])


def _layer(weights: Weights, prefix: str) -> nn.Linear:
    name = f"{prefix}weight"
    if name not in weights:
        raise CheckpointError(f"the projector has no {name}; it has {', '.join(sorted(weights)) or 'nothing'}")
    _, shape = weights.spec(name)
    if len(shape) != 2:
        raise CheckpointError(f"{weights.where(name)}: {name} is {list(shape)}, [rows, columns] was expected")
    rows, columns = shape
    return nn.Linear(columns, rows, bias=f"{prefix}bias" in weights, device="meta")


# how a configuration names a projector -> what builds it, empty, from its weights
PROJECTORS: dict[str, Callable[[Weights, str, str], nn.Module]] = {
    "linear": _linear,
    **{f"mlp{count}x": _mlp for count in range(1, 9)},
}


def load_vision(
    checkpoint: Checkpoint,
    tower: Placement,
    projector: Placement,
    *,
    allow_pickle: bool = False,
    cache_bytes: int = 256 << 20,
) -> ClipVision:
    """Loads tower and projector, each onto its placement; time and memory of each go to the log.

    Raises:
        CheckpointError: tensors missing, of another shape, or a projector that does not fit the tower.
        OutOfMemory: a device has no room for its part.
    """
    eyes = part_weights(checkpoint.tower.source, "tower", allow_pickle=allow_pickle)
    hands = part_weights(checkpoint.projector.source, "projector", allow_pickle=allow_pickle)
    if checkpoint.projector.kind not in PROJECTORS:
        raise CheckpointError(
            f"projector of type {checkpoint.projector.kind!r} is not known; known: {', '.join(PROJECTORS)}"
        )
    with torch.device("meta"):
        empty = ClipTower(checkpoint.tower).eval()
    seeing = _placed("vision tower", empty, eyes, tower)
    kind = checkpoint.projector.kind
    reading = _placed("projector", PROJECTORS[kind](hands, checkpoint.projector.act, kind), hands, projector)
    over = sorted(set(hands) - set(reading.state_dict()))
    if over:
        raise CheckpointError(
            f"{hands.where(over[0])}: the projector is said to be {kind}, which has no {', '.join(over)}: "
            "its configuration belongs to another file"
        )
    linears = [module for module in reading.modules() if isinstance(module, nn.Linear)]
    if linears[0].in_features != checkpoint.tower.hidden:
        raise CheckpointError(
            f"the projector takes features of {linears[0].in_features}, the tower makes {checkpoint.tower.hidden}: "
            "they belong to different models"
        )
    return ClipVision(
        seeing,
        reading,
        checkpoint.preprocessing,
        hidden=linears[-1].out_features,
        identity=_identity(checkpoint, seeing, reading),
        cache=FeatureCache(cache_bytes),
    )


def _placed(what: str, empty: PartT, weights: Weights, placement: Placement) -> PartT:
    """A part with its weights, each cast and moved as it is read; the tower's last blocks stay on disk."""
    device, dtype = placement.resolve()
    started = time.perf_counter()
    with _room(what):
        state = {
            name: _checked(what, name, wanted.shape, weights).to(device=device, dtype=dtype, copy=True)
            for name, wanted in empty.state_dict().items()
        }
    empty.load_state_dict(state, assign=True)
    empty.requires_grad_(False)
    size = sum(tensor.nbytes for tensor in state.values())
    log.info("%s: %.1f MB on %s in %s, %.2f s", what, size / 1e6, device, dtype, time.perf_counter() - started)
    return empty


def _checked(what: str, name: str, shape: torch.Size, weights: Weights) -> torch.Tensor:
    """A tensor as it is stored; its shape is looked at before it is read."""
    if name not in weights:
        raise CheckpointError(f"{what}: the tensor {name} is missing")
    found, file = weights.spec(name)[1], weights.where(name)
    if found != tuple(shape):
        raise CheckpointError(f"{what}: {file}: {name} is {list(found)}, {list(shape)} was expected")
    tensor = weights[name]
    if not tensor.is_floating_point():
        raise CheckpointError(f"{what}: {file}: {name} holds {tensor.dtype}, floating point numbers were expected")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{what}: {file}: {name} holds numbers that are not finite")
    return tensor


def _identity(checkpoint: Checkpoint, *parts: nn.Module) -> str:
    """A digest of weights, precision and preprocessing: what makes two visions see the same."""
    facts = (checkpoint.preprocessing, _shape(checkpoint.tower), checkpoint.projector.act)
    digest = hashlib.sha256(repr(facts).encode())
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _shape(tower: Tower) -> tuple[object, ...]:
    return (tower.layers, tower.heads, tower.patch_size, tower.act, tower.eps, tower.feature_layer, tower.keep_class)


def _padded(picture: Pictures.Image, colour: tuple[int, int, int]) -> Pictures.Image:
    width, height = picture.size
    side = max(width, height)
    if width == height:
        return picture
    canvas = Pictures.new("RGB", (side, side), colour)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    return canvas


def _on(values: torch.Tensor, part: nn.Module) -> torch.Tensor:
    """The values on a part's device and in its dtype."""
    first = next(part.parameters())
    return values.to(device=first.device, dtype=first.dtype)


@contextmanager
def _room(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the CPU and of mps torch says it in words alone
        if isinstance(error, torch.OutOfMemoryError) or _NO_ROOM.search(str(error)):
            raise OutOfMemory(f"{what}: its device has no room; place it elsewhere (cpu) or in float16") from error
        raise
