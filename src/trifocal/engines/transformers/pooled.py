"""The runner over transformers' models: all runs of a step in one row, with keys and values in a pool of blocks."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from trifocal.engines.scheduler import Run
from trifocal.engines.transformers.loading import Loaded
from trifocal.engines.transformers.looking import attention_of
from trifocal.prompt import Prompt

__all__ = ["Pooled", "pooled"]

NAME = "trifocal_pool"  # of the way of attending, among transformers' own
# what attention functions are given that changes nothing here, or that is done here
_KNOWN = {"scaling", "dropout", "sliding_window", "softcap", "position_ids", "use_cache", "logits_to_keep", "is_causal"}
_LAYERS = {"full_attention", "sliding_attention"}
# frequencies that depend on the longest request of a step would make neighbours change each other's answers
_OF_THE_LONGEST = {"dynamic", "longrope"}
FIRST_POSITIONS = 1024  # of memory; it doubles as it is needed


_Stretch = tuple[int, int, int]  # first position, first slot of the pool, positions


@dataclass(slots=True)
class _Segment:
    """A run's share of a step's rows, ``[at, at + count)``, and where its positions stand in the pool, in order."""

    at: int
    start: int
    count: int
    stretches: list[_Stretch]


class Pooled:
    """A runner; see `trifocal.engines.batching.Runner`.

    The rows of all runs are one row of inputs ``[1, rows, hidden]``, so that every weight is read once a step; only
    attention is computed run by run, over keys and values that are read where they lie.
    """

    def __init__(self, loaded: Loaded, block: int, memory_bytes: int) -> None:
        self.loaded, self._block = loaded, block
        self._keys: dict[int, torch.Tensor] = {}  # of each layer, [positions, heads, width]
        self._values: dict[int, torch.Tensor] = {}
        self._segments: list[_Segment] = []
        self._slots = torch.empty(0)
        self._asked: dict[int, dict[str, Any]] | None = {}  # while it is probed
        for module in loaded.model.modules():
            if hasattr(module, "layer_idx"):
                module.trifocal_pool = weakref.ref(self)  # a circle would keep the weights until it is collected
        _register()
        self.fits = self._probed()
        self._asked = None
        size = self._block * sum(one[0].nbytes for kind in (self._keys, self._values) for one in kind.values())
        blocks = max(-(-loaded.context // block), memory_bytes // max(size, 1))
        self.positions = blocks * block

    def forward(self, runs: Sequence[Run[Any]]) -> torch.Tensor:
        """Logits ``[positions that are wanted, vocabulary]``; see `trifocal.engines.batching.Runner.forward`."""
        self._place(runs)
        rows, places, at = self._rows(runs), [], 0
        wanted: list[int] = []
        for run in runs:
            places.append(torch.arange(run.start, run.start + run.count))
            at += run.count
            wanted += range(at - run.wanted, at)
        return self._computed(rows, torch.cat(places), torch.tensor(wanted, dtype=torch.long))

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        """Keeps keys and values ``[1, heads, rows, width]`` and attends; ``[1, rows, heads, width]``."""
        if self._asked is not None:
            self._asked[layer] = options
        keys, values = self._kept(self._keys, layer, key), self._kept(self._values, layer, value)
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        window, softcap = options.get("sliding_window"), options.get("softcap")
        outs = []
        for part in self._segments:
            first = 0 if window is None else max(0, part.start - window + 1)
            own = slice(part.at, part.at + part.count)
            seen, told = _read(keys, part.stretches, first), _read(values, part.stretches, first)
            mask = _mask(part, first, window, query.device)
            outs.append(_attended(query[:, :, own], seen, told, mask, scaling, softcap).transpose(1, 2))
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)

    def attention(self, prompt: Prompt, ids: Sequence[int], blocks: list[int]) -> torch.Tensor:
        """Where it looked; ``blocks`` are those that hold the beginning of the prompt already."""
        from transformers import DynamicCache

        cache, done = DynamicCache(), len(blocks) * self._block
        stretches = _stretches(blocks, self._block, done) if blocks else []
        for layer in sorted(self._keys) if blocks else ():
            cache.update(_read(self._keys[layer], stretches, 0), _read(self._values[layer], stretches, 0), layer)
        return attention_of(self.loaded, cache, prompt.splice(self.loaded.embed)[done:], ids, len(prompt))

    def _computed(self, rows: torch.Tensor, places: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """The model's logits ``[wanted, vocabulary]`` of input rows ``[rows, hidden]`` at their places."""
        config = self.loaded.model.config
        before, config._attn_implementation = config._attn_implementation, NAME
        try:
            out = self.loaded.model(
                inputs_embeds=rows[None],
                position_ids=places[None].to(rows.device),
                use_cache=False,
                logits_to_keep=wanted.to(rows.device),
            )
        finally:
            config._attn_implementation = before
        logits: torch.Tensor = out.logits[0]
        return logits

    def _probed(self) -> bool:
        """Whether every layer attends through this pool, with nothing asked that it does not know.

        Two positions are run; what a layer asks of its attention it asks always.
        """
        self._segments, self._slots = [_Segment(0, 0, 2, [(0, 0, 2)])], torch.arange(2, device=self.loaded.model.device)
        config = self.loaded.model.config
        try:
            self._computed(self.loaded.embed(torch.zeros(2, dtype=torch.long)), torch.arange(2), torch.tensor([1]))
        except (RuntimeError, ValueError, TypeError):
            return False
        assert self._asked is not None, "this is the probe"
        asked = list(self._asked.values())
        types = list(getattr(config, "layer_types", None) or ())
        windows = sum(options.get("sliding_window") is not None for options in asked)
        return (
            len(asked) == config.num_hidden_layers
            and all(value is None or name in _KNOWN for options in asked for name, value in options.items())
            and not any(options.get("is_causal") is False for options in asked)
            and (not types or windows == types.count("sliding_attention"))
        )

    def _place(self, runs: Sequence[Run[Any]]) -> None:
        """Says where the positions of a step go and where those before them are."""
        self._segments, slots, at = [], [], 0
        for run in runs:
            end = run.start + run.count
            stretches = _stretches(run.blocks, self._block, end)
            self._segments.append(_Segment(at, run.start, run.count, stretches))
            slots += [
                first + max(run.start - begin, 0) + offset
                for begin, first, size in stretches
                for offset in range(begin + size - max(run.start, begin))
            ]
            at += run.count
        self._slots = torch.tensor(slots, device=self.loaded.model.device)
        self._grow(1 + max(slots))

    def _grow(self, positions: int) -> None:
        """Makes the memory of every layer larger, if it has less than so many positions."""
        for kind in (self._keys, self._values):
            for layer, held in kind.items():
                if len(held) < positions:
                    larger = held.new_empty(max(2 * len(held), positions), *held.shape[1:])
                    larger[: len(held)] = held
                    kind[layer] = larger

    def _kept(self, kind: dict[int, torch.Tensor], layer: int, rows: torch.Tensor) -> torch.Tensor:
        """A layer's memory after ``rows`` ``[1, heads, rows, width]`` went into it."""
        if layer not in kind:
            kind[layer] = rows.new_empty(FIRST_POSITIONS, rows.shape[1], rows.shape[3])
            self._grow(1 + int(self._slots.max()))
        held = kind[layer]
        held.index_copy_(0, self._slots, rows[0].transpose(0, 1))
        return held

    def _rows(self, runs: Sequence[Run[Any]]) -> torch.Tensor:
        """The inputs of all runs, ``[rows, hidden]``."""
        ids: list[int] = []
        for run in runs:
            own = run.ids
            if own is None:
                spans = [span for run in runs for span in run.part.spans]
                return Prompt(spans).splice(self.loaded.embed)
            ids += own
        return self.loaded.embed(torch.tensor(ids, dtype=torch.long))


def pooled(loaded: Loaded, block: int, memory_bytes: int) -> Pooled | None:
    """A runner for a model, or None where its attention does not allow one."""
    model = loaded.model
    config = model.config
    ropes = _rope_types(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    if (
        loaded.attention != "causal"
        or not getattr(model, "_supports_attention_backend", False)
        or set(getattr(config, "layer_types", None) or ()) - _LAYERS
        or ropes & _OF_THE_LONGEST
    ):
        return None
    runner = Pooled(loaded, block, memory_bytes)
    return runner if runner.fits else None


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, **options: Any
) -> tuple[torch.Tensor, None]:
    """The attention function as transformers calls it: heads before rows in, rows before heads out."""
    pool: Pooled = module.trifocal_pool()
    options["attention_mask"] = mask  # none is made for a way of attending that transformers does not know
    return pool.attend(module.layer_idx, query, key, value, options), None


def _attended(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | bool,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention ``[1, heads, queries, width]``; ``mask`` says who is seen: True is causal, False is everybody."""
    heads, groups = query.shape[1], query.shape[1] // keys.shape[1]
    count = query.shape[2]
    if groups > 1 and count == 1 and mask is False:  # the queries of a group are rows over one key head
        query = query.view(1, heads // groups, groups, query.shape[3])
    elif groups > 1:
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    if softcap is None:
        causal, seen = mask is True, mask if isinstance(mask, torch.Tensor) else None
        out = scaled_dot_product_attention(query, keys, values, seen, scale=scaling, is_causal=causal)
    else:
        scores = (query @ keys.transpose(2, 3)) * scaling
        scores = torch.tanh(scores / softcap) * softcap
        if mask is True:
            mask = torch.ones(count, count, dtype=torch.bool, device=query.device).tril()
        if isinstance(mask, torch.Tensor):
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        out = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values
    return out.reshape(1, heads, count, values.shape[3])


def _mask(part: _Segment, first: int, window: int | None, device: torch.device) -> torch.Tensor | bool:
    """Who of the positions from ``first`` on is seen by the segment's own, ``[queries, keys]``; see `_attended`."""
    if part.count == 1:
        return False
    if part.start == 0 and (window is None or part.count <= window):
        return True
    queries = torch.arange(part.start, part.start + part.count, device=device)[:, None]
    keys = torch.arange(first, part.start + part.count, device=device)[None]
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def _stretches(blocks: Sequence[int], size: int, positions: int) -> list[_Stretch]:
    """Where the first ``positions`` stand, as stretches of blocks that are neighbours."""
    count = -(-positions // size)
    breaks = [at + 1 for at, (one, next) in enumerate(pairwise(blocks[:count])) if next != one + 1]
    return [
        (begin * size, blocks[begin] * size, min(end * size, positions) - begin * size)
        for begin, end in pairwise([0, *breaks, count])
    ]


def _read(held: torch.Tensor, stretches: list[_Stretch], first: int) -> torch.Tensor:
    """The rows of a request from position ``first`` on, ``[1, heads, positions, width]``; a copy only of several."""
    parts = []
    for at, slot, size in stretches:
        skip = max(first - at, 0)
        if skip < size:
            parts.append(held[slot + skip : slot + size])
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    return rows.transpose(0, 1)[None]


def _rope_types(parameters: Any) -> set[str]:
    """All kinds of rotary frequencies that a configuration names, also layer kind by layer kind."""
    if not isinstance(parameters, dict):
        return set()
    own = {str(parameters[key]) for key in ("rope_type", "type") if key in parameters}
    return own.union(*(_rope_types(value) for value in parameters.values()))
