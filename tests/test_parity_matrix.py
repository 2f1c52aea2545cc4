"""The table of docs/checkpoints.md: family by layout by quantisation, each held against its reference and measured.

``TRIFOCAL_MATRIX=1`` writes the measured table into the page; without it the page is checked to have the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from families import Pair, inputs_of, load_pair
from foreign_models import FOREIGN, NEWCOMERS
from foreign_pairs import ForeignPair, load_foreign
from gguf_layout import KINDS
from layouts import LINEAR, QUANTISATIONS, ByHand
from logits import logits_of
from seeing import prompt_of, rows_of
from trifocal.checkpoints import language_recipe
from trifocal.engines import Recipe
from trifocal.images import Image
from trifocal.messages import Sampling

PAGE = Path(__file__).parent.parent / "docs" / "checkpoints.md"
HEAD = "| family | layout | language half | rows | features | logits | 64 tokens | held against |"
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
PLAIN = ["1.5", "bakllava", "1.6-vicuna", "1.6-mistral", "1.6-34b", "onevision", "onevision-tied", "interleave"]
LAYOUTS = ["llava-hf", "llava-hf, new names, 2 shards", "original", "original, pickles"]
EARLY = [
    *((name, layout, "dense") for name in LINEAR for layout in ("original", "original, pickles")),
    ("1.5", "LoRA", "dense"),
    ("1.5", "LoRA, rslora, pickles", "dense"),
    ("v1", "LoRA, pickles", "dense"),
    ("llama-2", "LoRA", "dense"),
    ("v0-13b", "original", "GPTQ 4 bits, old CUDA"),
    ("v0-7b", "original", "GPTQ 4 bits, old CUDA"),
]
PACKED = [
    *(("1.5", "original", kind) for kind in QUANTISATIONS if "old CUDA" not in kind),
    *(
        (name, "llava-hf", kind)
        for name in ("1.6-mistral", "onevision")
        for kind in ("AWQ GEMM", "GPTQ 4 bits, act-order")
    ),
]
PAIRS = [(name, "GGUF pair", kind) for name in ("1.5", "1.6-vicuna") for kind in KINDS]
FOREIGN_CASES = [(name, "transformers", "dense") for name in (*FOREIGN, *NEWCOMERS)]
CASES = [*((name, layout, "dense") for name in PLAIN for layout in LAYOUTS), *EARLY, *PACKED, *PAIRS, *FOREIGN_CASES]
SIZE = (130, 70)


@dataclass(frozen=True)
class Measured:
    """What one case gave."""

    rows: int
    features: float
    logits: float
    tokens: bool
    reference: str


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, str, str], Measured]]:
    found: dict[tuple[str, str, str], Measured] = {}
    yield found
    if os.environ.get("TRIFOCAL_MATRIX") and len(found) == len(CASES):
        before, _, after = PAGE.read_text("utf-8").partition(HEAD)
        rest = after[after.index("\n\n") :]
        lines = [HEAD, "|---|---|---|---|---|---|---|---|", *(_line(case, found[case]) for case in CASES)]
        PAGE.write_text(before + "\n".join(lines) + rest, "utf-8")


def _line(case: tuple[str, str, str], found: Measured) -> str:
    name, layout, half = case
    said = "equal" if found.tokens else "**differ**"
    numbers = f"{found.rows} | {found.features:.0e} | {found.logits:.0e} | {said}"
    return f"| {name} | {layout} | {half} | {numbers} | {found.reference} |"


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_every_cell(
    case: tuple[str, str, str],
    tmp_path: Path,
    drawn: Callable[..., Image],
    table: dict[tuple[str, str, str], Measured],
) -> None:
    name, layout, half = case
    if case in FOREIGN_CASES:
        with load_foreign(name, tmp_path) as foreign:
            recipe, measured = language_recipe(foreign.llava.checkpoint), measure_foreign(foreign, drawn(1, *SIZE))
    else:
        with load_pair(name, layout, half, tmp_path, **({} if half == "dense" else WIDE)) as pair:
            recipe, measured = language_recipe(pair.llava.checkpoint), measure(pair, drawn(1, *SIZE))
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert measured.features <= 1e-5
    assert measured.logits <= 1e-4
    assert measured.tokens
    table[case] = measured


def test_the_page_has_the_rows_of_this_test() -> None:
    lines = PAGE.read_text("utf-8").partition(HEAD)[2].partition("\n\n")[0].splitlines()
    told = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]
    assert [cells[:3] for cells in told] == CASES
    assert {cells[6] for cells in told} == {"equal"}


def _named(model: object) -> str:
    if isinstance(model, ByHand):
        return f"`CLIPVisionModel`, a linear layer, `{type(model.language).__name__}`"
    return f"`{type(model).__name__}`"


@torch.no_grad()
def measure(pair: Pair, image: Image) -> Measured:
    """One picture between two texts: rows, the greatest differences, and 64 greedy tokens."""
    llava, model = pair.llava, pair.made.model
    ours, theirs = rows_of(llava.gallery.vision, [image])[0].cpu(), pair.reference_rows([image])[0]
    prompt = prompt_of(llava.composer, ["Look. ", image, "What is shown here?"])
    ids = torch.tensor([prompt.ids(model.config.image_token_id)])
    inputs = inputs_of(pair, [image])
    wanted = model(input_ids=ids, **inputs).logits[0]
    logits = logits_of(llava.engine, prompt).cpu()
    said = [token.id for token in llava.engine.stream(prompt, Sampling(max_tokens=64, ignore_end=True))]
    return Measured(
        rows=len(ours),
        features=float((ours - theirs).abs().max()),
        logits=float((logits - wanted).abs().max()),
        tokens=said == pair.greedy(ids, inputs, said),
        reference=_named(model),
    )


@torch.no_grad()
def measure_foreign(foreign: ForeignPair, image: Image) -> Measured:
    """The same of a family whose pictures transformers' own classes see."""
    parts = ["Look. ", image, "What is shown here?"]
    inputs, prompt = foreign.theirs(parts), prompt_of(foreign.llava.composer, foreign.ours(parts))
    assert prompt.ids(foreign.model.config.image_token_id) == inputs["input_ids"][0].tolist()
    ours = rows_of(foreign.llava.gallery.vision, [image])[0].cpu()
    wanted = foreign.model(**inputs).logits[0]
    said = [token.id for token in foreign.llava.engine.stream(prompt, Sampling(max_tokens=64, ignore_end=True))]
    return Measured(
        rows=len(ours),
        features=float((ours - foreign.rows(inputs)).abs().max()),
        logits=float((foreign.logits(prompt) - wanted).abs().max()),
        tokens=said == foreign.greedy(inputs, said),
        reference=_named(foreign.model),
    )
