"""Other families of LLaVA's design, through transformers' own vision halves: ids, logits and tokens are theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import trifocal
from foreign_models import FOREIGN, NEWCOMERS, make_foreign
from foreign_pairs import EXACT, ForeignPair, load_foreign
from seeing import count, prompt_of
from trifocal.checkpoints import from_folder
from trifocal.checkpoints.transformers import MISFITS
from trifocal.errors import CheckpointError, UsageError
from trifocal.images import Image, from_frames
from trifocal.messages import Sampling
from trifocal.placement import Placement

Drawn = Callable[..., Image]
ORDERS = {"one first": "i Q", "one in the middle": "Q i Q", "two": "Q i Q i Q"}


@pytest.fixture(scope="module", params=[*FOREIGN, *NEWCOMERS])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForeignPair]:
    with load_foreign(request.param, tmp_path_factory.mktemp("foreign")) as loaded:
        yield loaded


def parts_of(order: str, drawn: Drawn) -> list[str | Image]:
    sizes = iter([(70, 40), (33, 60), (50, 50)])
    return [drawn(7, *next(sizes)) if word == "i" else "What is shown here? " for word in order.split()]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@torch.no_grad()
def test_ids_rows_logits_and_tokens_are_those_of_transformers(foreign: ForeignPair, drawn: Drawn, order: str) -> None:
    parts = parts_of(order, drawn)
    inputs = foreign.theirs(parts)
    prompt = prompt_of(foreign.llava.composer, foreign.ours(parts))
    token = foreign.model.config.image_token_id
    assert prompt.ids(token) == inputs["input_ids"][0].tolist()
    assert len(prompt) == len(foreign.llava.composer.outline(foreign.ours(parts)))

    wanted = foreign.model(**inputs).logits[0]
    torch.testing.assert_close(foreign.logits(prompt), wanted, atol=1e-4, rtol=0)

    options = Sampling(max_tokens=64, ignore_end=True)
    said = [token.id for token in foreign.llava.engine.stream(prompt, options)]
    assert said == foreign.greedy(inputs, said)
    assert [token.id for token in foreign.llava.engine.stream(prompt, options)] == said  # from the prefix cache


def test_its_parts_are_told_and_are_one(foreign: ForeignPair) -> None:
    (part,) = foreign.llava.gallery.vision.parts
    assert "tower and projector" in part.what
    speaking = sum(tensor.nbytes for name, tensor in foreign.model.named_parameters() if "language_model" in name)
    whole = sum(tensor.nbytes for tensor in foreign.model.parameters())
    assert part.nbytes < whole - 0.8 * speaking  # hardly any language half came along
    source = str(foreign.llava.checkpoint.vision.source)
    with pytest.raises(UsageError, match="place both alike"):
        trifocal.load(checkpoint=source, template="plain", tower=EXACT, projector=Placement("cpu", "bfloat16"))


def test_a_conversation_is_answered_and_a_video_refused(foreign: ForeignPair, drawn: Drawn) -> None:
    source = str(foreign.llava.checkpoint.vision.source)
    with trifocal.load(checkpoint=source, template="plain") as llava:
        reply = llava.complete([llava.question("What?", [drawn(1, 70, 40)])], Sampling(max_tokens=3, ignore_end=True))
        assert reply.end.image_tokens == count(llava.gallery.vision, drawn(1, 70, 40))
        with pytest.raises(trifocal.BadImage, match="not videos"):
            llava.complete([llava.question("What?", [from_frames([drawn(1), drawn(2)])])])


def test_its_own_chat_template_is_the_one_it_speaks(foreign: ForeignPair, drawn: Drawn) -> None:
    source, mark = foreign.llava.checkpoint.vision.source, foreign.processor.image_token
    if "paligemma" in foreign.kind:  # it has none: it is no conversation's model
        with trifocal.load(checkpoint=str(source)) as llava:
            assert llava.template.name == "paligemma"
        return
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}" + mark + "{% else %}"
        "{{ c.text }}{% endif %}{% endfor %};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with trifocal.load(checkpoint=str(source)) as llava:
        assert llava.template.name == "checkpoint"
        parts = llava.template.render([llava.question("What?", [drawn(1, 70, 40)])])
        ours = prompt_of(llava.composer, parts).ids(foreign.model.config.image_token_id)
    theirs = foreign.processor(
        text=f"user: {mark}What?;assistant:", images=[drawn(1, 70, 40).pixels], return_tensors="pt"
    )
    assert ours == theirs["input_ids"][0].tolist()


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": {}, "text_config": {}}))
    with pytest.raises(CheckpointError, match=f"{kind} can't be read: .*"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"text_config": {"rope_scaling": {"mrope_section": [16, 24, 24]}}}, "m-rope"),
        ({"text_config": {"rope_parameters": {"mrope_section": [1]}}}, "m-rope"),
        ({"vision_config": {"deepstack_visual_indexes": [8, 16, 24]}}, "deepstack"),
        ({"text_config": {"cross_attention_layers": [3, 8]}}, "cross-attention"),
    ],
)
def test_what_nobody_knows_yet_is_refused_by_its_marks(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    whole = {"model_type": "newer_vl", "vision_config": {}, "text_config": {}, **config}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match=told):
        from_folder(tmp_path)


def test_an_engine_that_can_not_let_pictures_see_themselves_refuses(tmp_path: Path) -> None:
    from trifocal.engines import load_engine
    from trifocal.engines.recipe import Recipe

    make_foreign("gemma3", tmp_path)
    assert from_folder(tmp_path).attention == "images"
    config = {"hidden_size": 8}
    recipe = Recipe(source=str(tmp_path), config=config, attention="other", engine="echo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="can't let a picture's positions"):
        load_engine(recipe)
