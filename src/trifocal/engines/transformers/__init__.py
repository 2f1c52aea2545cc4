"""The engine over transformers' language models: our own loop, their classes as the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from trifocal.engines.base import Engine
from trifocal.engines.batching import Batching, Model
from trifocal.engines.language import open_language
from trifocal.engines.recipe import Recipe
from trifocal.engines.speculation import LONGEST
from trifocal.engines.transformers.alone import ABLE as ALONE
from trifocal.engines.transformers.alone import OneAtATime
from trifocal.engines.transformers.loading import Loaded, read
from trifocal.engines.transformers.pooled import Pooled, pooled
from trifocal.placement import Part, Placement

__all__ = ["OneAtATime", "Transformers", "load"]

ABLE = replace(ALONE, speculates=True)
BLOCK = 16  # positions
PIECE = 128  # positions of prompts beside streams, on a CPU


class Transformers(Batching):
    """A causal language model of transformers, all of whose requests go on together."""

    @property
    def loaded(self) -> Loaded:
        """The transformers model and what belongs to it.

        Raises:
            EngineError: the engine is closed.
        """
        runner = self.facts.runner
        assert isinstance(runner, Pooled)
        return runner.loaded

    @property
    def model(self) -> Any:
        """The transformers model itself."""
        return self.loaded.model

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedding rows ``[n, hidden]`` of ids ``[n]``, on the model's device."""
        return self.loaded.embed(ids)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The language model, as it is loaded."""
        return (self.loaded.part,)


def load(
    recipe: Recipe,
    placement: Placement,
    *,
    context: int | None = None,
    prefix_cache: int = 1 << 30,
    threads: int | None = None,
    int4: bool | None = None,
    piece: int | None = None,
    speculate: bool = True,
) -> Engine:
    """Loads a language model tensor by tensor onto its device.

    ``context`` caps the positions of prompt and answer, ``prefix_cache`` is how many bytes keys and values may take
    (at least those of a full context), those of earlier prompts included; 0 forgets these. ``threads`` sets torch's CPU
    threads (of the whole process). ``int4`` says whether the layers of four-bit checkpoints stay packed (a quarter of
    the memory, faster answers, a product in bfloat16) or are dequantised; left out, they stay packed where the dense
    model would be large. ``piece`` is how many positions of prompts are computed in a step in which others stream.
    ``speculate`` is the guessing of what an answer says next from what stands before it, which changes no answer and is
    done only while it is measured to pay.
    """
    if threads:
        torch.set_num_threads(threads)

    if placement.resolve()[0].type == "cuda":
        # cuDNN's attention plans anew for every length, 1 ms a layer, and an answer meets each length once
        torch.backends.cuda.enable_cudnn_sdp(False)

    def start() -> Model:
        loaded = read(open_language(recipe), placement, context=context, int4=int4)
        runner = pooled(loaded, BLOCK, prefix_cache)
        if runner is None:
            raise _NotPooled(loaded)
        return Model(
            runner=runner,
            tokenizer=loaded.tokenizer,
            hidden=loaded.hidden,
            context=loaded.context,
            end_ids=loaded.end_ids,
            able=ABLE,
            block=BLOCK,
            piece=piece or (PIECE if loaded.model.device.type == "cpu" else 4 * PIECE),
            share=prefix_cache > 0,
            ahead=LONGEST if speculate else 0,
            constraint=loaded.constraint,
            attention=runner.attention,
        )

    try:
        return Transformers(start)
    except _NotPooled as found:
        return OneAtATime(found.loaded, prefix_cache)


class _NotPooled(Exception):
    """A model was loaded whose attention no pool can hold."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        super().__init__()
