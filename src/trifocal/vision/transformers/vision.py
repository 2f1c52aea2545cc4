"""Pictures as a model of transformers sees them."""

from __future__ import annotations

import hashlib
import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trifocal.checkpoints import Checkpoint, ForeignVision
from trifocal.checkpoints.transformers import PROVEN, stored_parts
from trifocal.errors import BadImage, CheckpointError, UsageError
from trifocal.images import Image
from trifocal.placement import Part, Placement
from trifocal.quiet import quiet
from trifocal.timing import step
from trifocal.vision.base import Layout, Look
from trifocal.vision.placing import room
from trifocal.vision.transformers.model import build
from trifocal.vision.transformers.probe import misfit
from trifocal.vision.transformers.processors import Processor, open_processor

__all__ = ["TransformersVision", "load_transformers"]

log = logging.getLogger("trifocal")
WHITE = (255, 255, 255)
SIZES = 4096  # sizes of pictures whose layouts are remembered


class TransformersVision:
    """The vision half of a model of transformers, in one piece on one placement."""

    def __init__(self, model: Any, processor: Processor, *, hidden: int, identity: str, part: Part) -> None:
        self.model, self.processor = model, processor
        self.hidden, self.identity, self._part = hidden, identity, part
        self._layouts: dict[tuple[int, int], Layout] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of and where it is."""
        return (self._part,)

    def looks(self, images: Sequence[Image]) -> list[Look]:
        """The rows of each picture, and the tokens around and between them; a blank one of its size tells them.

        Raises:
            BadImage: a video.
        """
        for image in images:
            if image.frames:
                raise BadImage("is_a_video", "this model takes pictures, not videos", image.name)
        return [Look(image, self._layout((image.width, image.height))) for image in images]

    def see(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        """The rows of each look; pictures are seen one by one.

        Raises:
            OutOfMemory: the device has no room.
        """
        return [self._seen(look.image) for look in looks]

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

    def _layout(self, size: tuple[int, int]) -> Layout:
        if size not in self._layouts:
            from PIL import Image as Pictures

            if len(self._layouts) >= SIZES:
                self._layouts.clear()
            self._layouts[size] = self.processor.layout(self.processor.inputs(Pictures.new("RGB", size)))
        return self._layouts[size]

    def _seen(self, image: Image) -> torch.Tensor:
        with step("preprocess"):
            inputs = self.processor.inputs(image.on(WHITE))
        with step("tower"), room("vision tower"):
            return self._rows(inputs)

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


def load_transformers(checkpoint: Checkpoint, tower: Placement, projector: Placement) -> TransformersVision:
    """Loads the vision half of a model of transformers; the language half is never built.

    Raises:
        CheckpointError: files that transformers can't make this model of, or a family that rows are not enough for.
        UsageError: tower and projector on different placements: here they are one part.
    """
    if tower.resolve() != projector.resolve():
        raise UsageError(f"{checkpoint.family}: tower and projector are one part here; place both alike")
    device, dtype = tower.resolve()
    started = time.perf_counter()
    assert isinstance(checkpoint.vision, ForeignVision)
    folder = checkpoint.vision.source
    state = stored_parts(folder)
    with room("vision tower"):
        model = build(folder, state, dtype).to(device).eval().requires_grad_(False)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    log.info("vision: %.1f MB on %s in %s, %.2f s", size / 1e6, device, dtype, time.perf_counter() - started)
    kind = str(model.config.model_type)
    with quiet():
        processor = open_processor(folder, model.config)
    vision = TransformersVision(
        model,
        processor,
        hidden=int(model.config.text_config.hidden_size),
        identity=_identity(state, dtype, folder),
        part=Part("tower", f"{kind}, tower and projector", str(device), str(dtype).removeprefix("torch."), size),
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
