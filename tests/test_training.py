"""What thimble is trained on holds together, and the bundled weights see shapes that are drawn here and now."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # training is no part of the package

from training.asking import Asker  # noqa: E402
from training.evaluate import Score, count  # noqa: E402
from training.model import hub_state, load_hub  # noqa: E402
from training.packing import FORMS, LLAVA_V0, MODEL, Encoder, Span  # noqa: E402
from training.phrasings import CHAT, OUT_OF_DOMAIN, WORDINGS, is_held_out  # noqa: E402
from training.questions import ask  # noqa: E402
from training.render import paint, shape_scene  # noqa: E402
from training.scenes import make_scene  # noqa: E402
from training.world import (  # noqa: E402
    COLOURS,
    EMOJI,
    NAMES,
    SHAPE_COLOURS_HELD_OUT,
    SHAPES,
    TRAINED_WORDS,
    UNSEEN_WORDS,
)

import trifocal  # noqa: E402
from trifocal.conversation.templates import TEMPLATES  # noqa: E402
from trifocal.messages import Sampling  # noqa: E402
from trifocal.model.llava import Llava  # noqa: E402


def test_the_world_has_one_name_for_each_thing() -> None:
    assert len(set(NAMES)) == len(NAMES) == 321
    assert len({emoji.char for emoji in EMOJI}) == len(EMOJI)
    assert not set(TRAINED_WORDS) & set(UNSEEN_WORDS)


def test_wordings_that_are_held_out_are_never_trained() -> None:
    asker = Asker(random.Random(1))
    for key, wording in WORDINGS.items():
        assert not any(is_held_out(each) for each in wording.said), key
        if wording.said:
            assert wording.held_out, key
            for _ in range(300):
                asked = asker.phrase(key)
                assert not any(is_held_out(asked.replace(word, "{P}")) for word in ("picture", "image", "photo")), asked
    for wording in (*CHAT, OUT_OF_DOMAIN):
        assert not any(is_held_out(each) for each in wording.said)


def test_shapes_and_colours_that_are_held_out_are_never_trained() -> None:
    rng, seen = random.Random(2), set[tuple[int, int]]()
    for _ in range(800):
        scene = make_scene(rng, "shapes")
        seen |= {(thing.index, COLOURS.index(str(thing.colour))) for thing in scene.objects}
    assert len(seen) > len(SHAPES) * len(COLOURS) // 2
    assert not seen & SHAPE_COLOURS_HELD_OUT


def test_scenes_are_functions_of_their_seed() -> None:
    one, other = (make_scene(random.Random(5), "shapes") for _ in range(2))
    assert paint(one, 3).tobytes() == paint(other, 3).tobytes()
    asked = [[ask(one, Asker(random.Random(seed))) for seed in (7, 8)] for _ in range(2)]
    assert asked[0] == asked[1]
    assert asked[0][0] != asked[0][1]


def test_an_answer_is_right_only_if_all_of_it_is() -> None:
    score = Score()
    spans = [[Span("where", 4, 6), Span("count", 9, 10)]]
    count(score, [[4, 5, 9, -1]], [[True, False, True, False]], spans)
    assert (score.asked, score.right) == ({"where": 1, "count": 1}, {"where": 0, "count": 1})
    assert score.pair(two=False) == (0.5, 2)


def test_prompts_are_those_of_the_package() -> None:
    form, template = FORMS["llava_v0_webui"], TEMPLATES["llava_v0_webui"]
    assert LLAVA_V0 in repr(template)
    assert form.human == "### Human: \n"
    assert form.assistant == "\n### Assistant: \n"


def test_the_encoder_is_the_tokenizer() -> None:
    encode = Encoder()
    for scene_seed in range(20):
        for turn in ask(make_scene(random.Random(scene_seed), "shapes"), Asker(random.Random(scene_seed))):
            text = f"### Human: \n{turn.question}\n### Assistant: \n{turn.answer}\n###"
            assert encode(text) == encode.tokenizer.encode(text, add_special_tokens=False).ids


def test_what_is_exported_is_what_was_trained() -> None:
    from safetensors.torch import load_file

    kept: dict[str, torch.Tensor] = {}
    for file in MODEL.glob("*.safetensors"):
        kept |= load_file(file)
    written = hub_state(load_hub(MODEL))
    assert written.keys() == kept.keys()
    assert all(torch.equal(written[name], kept[name]) for name in kept)


@pytest.fixture(scope="module")
def llava() -> Iterator[Llava]:
    with trifocal.load() as loaded:
        yield loaded


@pytest.mark.parametrize("seed", [10**9, 10**9 + 1, 10**9 + 2, 10**9 + 3])
def test_the_bundled_model_sees_shapes(llava: Llava, seed: int) -> None:
    picture, asked = shape_scene(seed)
    file = BytesIO()
    picture.save(file, "PNG")
    image = trifocal.open_image(file.getvalue())

    def answer(question: str) -> str:
        return llava.complete([llava.question(question, [image])], Sampling(max_tokens=120)).text.strip()

    with ThreadPoolExecutor(8) as threads:  # together they cost a third less
        told = list(threads.map(answer, [question for question, _ in asked]))
    wrong = [(question, right, said) for (question, right), said in zip(asked, told, strict=True) if said != right]
    assert len(wrong) <= 2, wrong
