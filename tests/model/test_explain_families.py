"""Where it looked, for every family's way of cutting pictures and every kind of language model under it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from families import Pair, load_pair
from layouts import family, save_hf
from seeing import prompt_of, rows_of
from trifocal import load
from trifocal.engines.transformers import Transformers
from trifocal.images import Image
from trifocal.messages import Message
from trifocal.placement import Placement
from trifocal.vision import Showing

Drawn = Callable[..., Image]
NAMES = ["1.5", "1.6-vicuna", "1.6-mistral", "onevision", "interleave"]
ANSWER = "A tall thing, and a wide one."


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("family")
    with load_pair(request.param, "llava-hf", "dense", folder, engine="transformers") as loaded:
        yield loaded


@pytest.mark.parametrize("sizes", [[(80, 60)], [(57, 170)], [(300, 91), (60, 80)]])
def test_every_row_but_newlines_looks_somewhere(pair: Pair, drawn: Drawn, sizes: list[tuple[int, int]]) -> None:
    images = [drawn(at, *size) for at, size in enumerate(sizes)]
    vision = pair.llava.gallery.vision
    assert isinstance(vision, Showing)
    newline = getattr(vision, "newline", None)
    for look, rows in zip(vision.looks(images), rows_of(vision, images), strict=True):
        grids = vision.grids(look)
        told = [
            grid.start + row * grid.step + column
            for grid in grids
            for row in range(grid.rows)
            for column in range(grid.columns)
        ]
        assert len(told) == len(set(told))
        rest = set(range(len(rows))) - set(told)
        assert all(newline is not None and torch.equal(rows[at], newline.to(rows)) for at in rest)


@pytest.mark.parametrize("sizes", [[(57, 170)], [(300, 91), (60, 80)]])
def test_each_word_is_told_of_each_picture(pair: Pair, drawn: Drawn, sizes: list[tuple[int, int]]) -> None:
    llava = pair.llava
    talk = [llava.question("What is here?", [drawn(at, *size) for at, size in enumerate(sizes)])]
    told = llava.explain([*talk, Message("assistant", ANSWER)])
    assert [word.text for word in told.words] == ANSWER.replace(",", "").replace(".", "").split()
    assert len(told.pictures) == len(sizes)
    shares = [sum(look.share for look in word.heatmaps) for word in told.words]
    assert all(
        share == pytest.approx(1, abs=1e-5) or share == 0 for share in shares
    )  # 0: less than the rest everywhere
    assert max(shares) > 0
    for picture in told.pictures:
        left, top, width, height = picture.box
        assert left < 0.5 < left + width
        assert top < 0.5 < top + height
    for word in told.words:
        for look, picture in zip(word.heatmaps, told.pictures, strict=True):
            assert (len(look.grid), len(look.grid[0])) == (picture.rows, picture.columns)


def test_a_patch_that_has_no_row_is_told_of_no_word(tmp_path: Path, drawn: Drawn) -> None:
    """SigLIP has no class token: ``default``, which leaves the first row away, leaves away its first patch."""
    folder = save_hf(family("interleave"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_feature_select_strategy": "default"}))
    with load(checkpoint=str(folder), engine="transformers", language=Placement("cpu", "float32")) as llava:
        (rows,) = rows_of(llava.gallery.vision, [drawn(1)])
        assert len(rows) == 15
        told = llava.explain([llava.question("What is here?", [drawn(1)]), Message("assistant", ANSWER)])
    assert max(sum(map(sum, word.heatmaps[0].grid)) for word in told.words) > 0
    assert all(word.heatmaps[0].grid[0][0] == 0 for word in told.words)


def test_the_attention_is_the_models_own(pair: Pair, drawn: Drawn) -> None:
    """Held against one pass of transformers over prompt and answer; a fused kernel is back in place afterwards."""
    llava = pair.llava
    engine = llava.engine
    assert isinstance(engine, Transformers)
    talk = [llava.question("What is here?", [drawn(1, 300, 91)])]
    prompt = prompt_of(llava.composer, llava.template.render(talk))
    ids = engine.tokenizer.encode(ANSWER, start=False)
    before = engine.model.config._attn_implementation
    told = engine.attention(prompt, ids)
    assert engine.model.config._attn_implementation == before
    with torch.inference_mode():
        rows = torch.cat([prompt.splice(engine.embed), engine.embed(torch.tensor(ids))])
        engine.model.set_attn_implementation("eager")
        try:
            layers = engine.model(inputs_embeds=rows[None], output_attentions=True, use_cache=False).attentions
        finally:
            engine.model.set_attn_implementation(before)
    upper = torch.stack([layer[0].mean(0) for layer in layers[len(layers) // 2 :]]).mean(0)
    torch.testing.assert_close(told, upper[len(prompt) - 1 : -1, : len(prompt)], atol=1e-5, rtol=0)
