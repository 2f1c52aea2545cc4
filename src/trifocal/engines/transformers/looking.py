"""Where a language model of transformers looked while it chose each id of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trifocal.engines.transformers.loading import Loaded
from trifocal.errors import EngineError

__all__ = ["HELD_BYTES", "attending", "attention_of"]

HELD_BYTES = 256 << 20  # attention weights that are looked at together


def attention_of(
    loaded: Loaded, cache: Any, rows: torch.Tensor, ids: Sequence[int], positions: int, **masks: Any
) -> torch.Tensor:
    """The attention of each id of an answer to the ``positions`` of its prompt, ``[ids, positions]`` on the CPU.

    ``cache`` holds what comes before ``rows`` ``[n, hidden]``, the rest of the prompt, and grows by rows and answer.
    """
    model, config = loaded.model, loaded.model.config
    if len(rows) > 1:
        model(inputs_embeds=rows[None], **loaded.keeping(cache), use_cache=True, logits_to_keep=1, **masks)
        cache.crop(-1)  # its last position is asked below
    asked = torch.cat([rows[-1:], loaded.embed(torch.tensor(ids[:-1], dtype=torch.long))])  # [ids, hidden]
    row = config.num_hidden_layers * config.num_attention_heads * (positions + len(ids)) * rows.element_size()
    step = max(1, HELD_BYTES // row)
    with attending(model, "eager"):
        parts = [_looked(loaded, cache, asked[at : at + step], positions) for at in range(0, len(asked), step)]
    return torch.cat(parts)


@contextmanager
def attending(model: Any, implementation: str) -> Iterator[None]:
    """Has a model attend in another way: ``eager`` tells the weights, which fused kernels keep to themselves."""
    before = model.config._attn_implementation
    if before == implementation:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _looked(loaded: Loaded, cache: Any, rows: torch.Tensor, positions: int) -> torch.Tensor:
    """The attention of input rows ``[n, hidden]`` to the first positions, ``[n, positions]``; the cache grows."""
    out = loaded.model(
        inputs_embeds=rows[None], **loaded.keeping(cache), use_cache=True, output_attentions=True, logits_to_keep=1
    )
    layers = [layer for layer in out.attentions or () if layer is not None]  # each [1, heads, n, all positions]
    if not layers:
        raise EngineError("this language model does not tell its attention")
    upper = [layer[0, ..., :positions].float().mean(0) for layer in layers[len(layers) // 2 :]]
    return torch.stack(upper).mean(0).cpu()
