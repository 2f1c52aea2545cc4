"""Pictures as a model of transformers sees them."""

from __future__ import annotations

import hashlib
import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trifocal.checkpoints import Checkpoint
from trifocal.checkpoints.door import PROVEN, stored_parts
from trifocal.errors import BadImage, CheckpointError, UsageError
from trifocal.images import Image
from trifocal.placement import Part, Placement
from trifocal.timing import Timings
from trifocal.vision.cache import FeatureCache
from trifocal.vision.door.model import build
from trifocal.vision.door.probe import misfit
from trifocal.vision.door.processors import Layout, Processor, open_processor
from trifocal.vision.placing import room

__all__ = ["DoorVision", "load_door"]

log = logging.getLogger("trifocal")
WHITE = (255, 255, 255)
SIZES = 4096  # sizes of pictures whose layouts are remembered


class DoorVision:
    """The vision half of a model of transformers, in one piece on one placement."""

    def __init__(
        self, model: Any, processor: Processor, *, hidden: int, identity: str, part: Part, cache: FeatureCache
    ) -> None:
        self.model, self.processor, self.cache = model, processor, cache
        self.hidden, self.identity, self._part = hidden, identity, part
        self._layouts: dict[tuple[int, int], Layout] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of and where it is."""
        return (self._part,)

    def encode(self, images: Sequence[Image], timings: Timings | None = None) -> list[torch.Tensor]:
        """Rows of each picture, ``[positions, hidden]``, in order; pictures are seen one by one.

        Raises:
            BadImage: a video.
            OutOfMemory: the device has no room.
        """
        timings = Timings() if timings is None else timings
        return self.cache.fill(images, lambda new: [self._see(image, timings) for image in new])

    def positions(self, image: Image, among: int = 1) -> int:
        """How many rows a picture of this size has."""
        return sum(item for item in self.layout(image, among) if isinstance(item, int))

    def cached(self, image: Image, among: int = 1) -> bool:
        """Whether a picture's rows are known already."""
        return self.cache.has(image)

    def layout(self, image: Image, among: int = 1) -> Layout:
        """Tokens and numbers of rows of a picture; a blank one of its size tells them."""
        size = (image.width, image.height)
        if size not in self._layouts:
            from PIL import Image as Pictures

            if len(self._layouts) >= SIZES:
                self._layouts.clear()
            self._layouts[size] = self.processor.layout(self.processor.inputs(Pictures.new("RGB", size)))
        return self._layouts[size]

    def check(self, attention: str) -> None:
        """Holds what we make of a picture against what transformers' own forward pass makes of it.

        Raises:
            CheckpointError: rows in the prompt are not enough for this family; says why.
        """
        from PIL import Image as Pictures

        noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        inputs = self.processor.inputs(Pictures.fromarray(noise.numpy()))
        reason = misfit(self.model, self._placed(inputs), self._rows(inputs), attention)
        if reason:
            raise CheckpointError(f"{self._part.what.split(',')[0]} can't be read: {reason}")

    def _see(self, image: Image, timings: Timings) -> torch.Tensor:
        if image.frames:
            raise BadImage("is_a_video", "this model takes pictures, not videos", image.name)
        with timings.step("preprocess"):
            inputs = self.processor.inputs(image.on(WHITE))
        with timings.step("tower"), room("vision tower"):
            block = self._rows(inputs)
        wanted = self.positions(image)
        if len(block) != wanted:
            raise CheckpointError(f"{image.name}: the tower made {len(block)} rows where {wanted} were reckoned with")
        return block

    @torch.inference_mode()
    def _rows(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Rows ``[positions, hidden]`` of a picture."""
        see = getattr(self.model, "get_image_features", None) or self.model.base_model.get_image_features
        given, taken = self._placed(inputs), inspect.signature(see).parameters
        seen = see(**{name: given[name] for name in given if name in taken})
        rows = getattr(seen, "pooler_output", seen)
        if isinstance(rows, (list, tuple)):
            rows = torch.cat([each.flatten(0, -2) for each in rows])
        block: torch.Tensor = rows.flatten(0, -2).clone()
        return block

    def _placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs that are numbers, on the model's device and in its precision."""
        first = next(self.model.parameters())
        found = {}
        for name, value in inputs.items():
            try:
                tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
            except (ValueError, TypeError, RuntimeError):  # of another kind: none of the tower's affair
                continue
            found[name] = tensor.to(first.device, first.dtype if tensor.is_floating_point() else None)
        return found


def load_door(
    checkpoint: Checkpoint, tower: Placement, projector: Placement, *, cache_bytes: int = 256 << 20, **_: Any
) -> DoorVision:
    """Loads the vision half of a model of transformers; the language half is never built.

    Raises:
        CheckpointError: files that transformers can't make this model of, or a family that rows are not enough for.
        UsageError: tower and projector on different placements: here they are one part.
    """
    if tower.resolve() != projector.resolve():
        raise UsageError(f"{checkpoint.family}: tower and projector are one part here; place both alike")
    device, dtype = tower.resolve()
    started = time.perf_counter()
    folder = checkpoint.tower.source
    state = stored_parts(folder)
    with room("vision tower"):
        model = build(folder, state, dtype).to(device).eval().requires_grad_(False)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    log.info("vision: %.1f MB on %s in %s, %.2f s", size / 1e6, device, dtype, time.perf_counter() - started)
    kind = str(model.config.model_type)
    vision = DoorVision(
        model,
        open_processor(folder, model.config),
        hidden=int(model.config.text_config.hidden_size),
        identity=_identity(state, dtype, folder),
        part=Part("tower", f"{kind}, tower and projector", str(device), str(dtype).removeprefix("torch."), size),
        cache=FeatureCache(cache_bytes),
    )
    if kind not in PROVEN:
        vision.check(checkpoint.attention)
        log.info("%s: no test of ours knows it; one picture was held against transformers' own forward pass", kind)
    return vision


def _identity(state: Mapping[str, torch.Tensor], dtype: torch.dtype, folder: Any) -> str:
    digest = hashlib.sha256(f"{dtype} {(folder / 'config.json').read_bytes()!r}".encode())
    for name in sorted(state):
        digest.update(name.encode() + state[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
