"""Has transformers' own model run over one picture, and looks at what its language model is given.

Rows in the prompt are enough for a family if the language model gets them in the places of its picture's tokens, as
they are, with ordinary positions and the mask that we would give it, and nothing besides.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["misfit"]

# what a language model is told besides, none of which is about pictures
_PLAIN = {
    "attention_mask",
    "cache",
    "cache_position",
    "inputs_embeds",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "past_key_values",
    "position_ids",
    "return_dict",
    "use_cache",
}


class _Seen(Exception):
    """What the language model was given; ends the run."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given


@torch.inference_mode()
def misfit(model: Any, inputs: Mapping[str, Any], rows: torch.Tensor, attention: str) -> str | None:
    """Why rows in the prompt are not enough for this model; None where they are.

    ``model`` has a vocabulary of a few tokens, ``inputs`` are what its processor made of one picture and its tokens,
    ``rows`` ``[positions, hidden]`` what we make of it, and ``attention`` is how we would attend.
    """
    ids: torch.Tensor = inputs["input_ids"]  # [1, positions]
    is_picture = (ids[0] == model.config.image_token_id).cpu()
    table = model.get_input_embeddings()
    model.set_input_embeddings(_Few(table))
    try:
        given, wanted = _given(model, ids, inputs), model.get_input_embeddings()(ids)[0]
    finally:
        model.set_input_embeddings(table)
    if given is None:
        return "its language model is not called in the way of the others"
    extra = [name for name, value in given.items() if name not in _PLAIN and _holds_numbers(value)]
    if extra:
        return f"its language model is given {', '.join(sorted(extra))} besides"
    embeds = given.get("inputs_embeds")
    if embeds is None or embeds.shape[:2] != ids.shape:
        return "its language model is not given one row a token"
    if int(is_picture.sum()) != len(rows):
        return f"its projector makes {len(rows)} rows of a picture that has {int(is_picture.sum())} tokens"
    for which, right, said in (
        (is_picture, rows, "rows of a picture don't come to its language model as its projector makes them"),
        (~is_picture, wanted[~is_picture], "tokens beside a picture don't come to its language model as they are"),
    ):
        size = float(right.abs().max()) if len(right) else 0.0
        if not torch.allclose(embeds[0, which].float(), right.float(), rtol=1e-2, atol=1e-3 * size):
            return said
    places = given.get("position_ids")
    if places is not None and (places.dim() != 2 or not bool((places.diff() == 1).all())):
        return "its positions are not those of a text of this length (as in m-rope)"
    return _unseen(given.get("attention_mask"), is_picture, attention)


class _Few(torch.nn.Module):
    """A table of a few words for any number of them."""

    def __init__(self, table: torch.nn.Module) -> None:
        super().__init__()
        self.table, self.weight = table, table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.table(ids % len(self.table.weight))  # type: ignore[arg-type]
        return rows


def _given(model: Any, ids: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of the language model's first call."""
    speaking = model.get_decoder()
    names = list(inspect.signature(speaking.forward).parameters)

    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Seen({**dict(zip(names, args, strict=False)), **kwargs})

    taken = inspect.signature(model.forward).parameters
    asked = {name: value for name, value in inputs.items() if name in taken}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in taken:
            asked.setdefault(name, (ids == model.config.image_token_id).long())
    hook = speaking.register_forward_pre_hook(look, with_kwargs=True)
    try:
        model(**asked)
    except _Seen as seen:
        return seen.given
    finally:
        hook.remove()
    return None


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_numbers(each) for each in value)
    return isinstance(value, torch.Tensor)


def _unseen(mask: Any, is_picture: torch.Tensor, attention: str) -> str | None:
    """Whether positions see those that we would let them see; what is wrong otherwise."""
    mask = mask.get("full_attention") if isinstance(mask, dict) else mask
    count = len(is_picture)
    wanted = torch.ones(count, count, dtype=torch.bool).tril()
    if attention == "images":
        wanted |= is_picture[:, None] & is_picture[None]
    if attention == "prompt":
        wanted |= True
    if mask is None or mask.dim() == 2:
        sees = torch.ones(count, count, dtype=torch.bool).tril()
    else:
        sees = mask[0, 0, :, :count].cpu()
        sees = sees if sees.dtype == torch.bool else sees == 0
    return None if torch.equal(sees, wanted) else "its positions see each other in another way than those of a text"
