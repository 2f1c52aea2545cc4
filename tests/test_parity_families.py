"""Every family against transformers' own class of it, whatever layout it came in: pixels, rows, logits, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import trifocal
from families import EXACT, SQUARE, Pair, inputs_of, load_pair
from layouts import family, save_hf, save_original
from logits import logits_of
from seeing import count, prompt_of, rows_of
from trifocal.errors import BadImage
from trifocal.images import Image, from_frames
from trifocal.messages import Sampling
from trifocal.weights.tensors import part_weights

Drawn = Callable[..., Image]
NAMES = ["1.5", "bakllava", "1.6-vicuna", "1.6-mistral", "1.6-34b", "onevision", "onevision-tied", "interleave"]
SIZES = [(80, 60), (60, 80), (112, 112), (300, 91), (91, 300), (57, 170), (400, 380), (640, 90)]
ORDERS = {"one first": "i Q", "one middle": "Q i Q", "three apart": "i Q i Q i", "two together": "Q i i Q"}


CASES = [(name, layout) for name in NAMES for layout in ("llava-hf", "original")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    name, layout = request.param
    with load_pair(name, layout, "dense", tmp_path_factory.mktemp("family")) as loaded:
        yield loaded


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_and_rows_are_those_of_transformers(pair: Pair, drawn: Drawn, size: tuple[int, int]) -> None:
    image = drawn(1, *size)
    theirs = inputs_of(pair, [image])["pixel_values"]
    theirs = theirs[0] if theirs.dim() == 5 else theirs
    gallery = pair.llava.gallery
    torch.testing.assert_close(gallery.vision.pixels(*gallery.looks([image])), theirs, atol=1e-6, rtol=0)
    (ours,), (wanted,) = rows_of(pair.llava.gallery.vision, [image]), pair.reference_rows([image])
    assert len(ours) == count(pair.llava.gallery.vision, image)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_several_pictures_are_seen_as_several(pair: Pair, drawn: Drawn) -> None:
    images = [drawn(1, 80, 60), drawn(2, 300, 91), drawn(3, 57, 170)]
    vision = pair.llava.gallery.vision
    for ours, wanted in zip(rows_of(vision, images), pair.reference_rows(images), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)
    alone = rows_of(vision, images[:1])[0]  # the cache holds the two ways of seeing apart
    torch.testing.assert_close(alone, pair.reference_rows(images[:1])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_logits_and_64_tokens_are_those_of_transformers(pair: Pair, drawn: Drawn, order: str) -> None:
    seeds = iter(range(10))
    parts = [drawn(next(seeds), 70, 130) if word == "i" else "What is shown here?" for word in order.split()]
    llava, model = pair.llava, pair.made.model
    prompt = prompt_of(llava.composer, parts)
    ids = torch.tensor([prompt.ids(model.config.image_token_id)])
    inputs = inputs_of(pair, [part for part in parts if isinstance(part, Image)])
    with torch.no_grad():
        theirs = model(input_ids=ids, **inputs).logits[0]
        ours = logits_of(llava.engine, prompt)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    said = [token.id for token in llava.engine.stream(prompt, Sampling(max_tokens=64, ignore_end=True))]
    assert said == pair.greedy(ids, inputs, said)


def test_a_video_is_its_frames(tmp_path: Path, drawn: Drawn) -> None:
    made = family("onevision")
    video = from_frames([drawn(seed, 90, 70) for seed in range(5)])
    frames = SiglipImageProcessorPil(size=SQUARE)(list(video.frames), return_tensors="pt")["pixel_values"]
    with trifocal.load(checkpoint=str(save_hf(made, tmp_path)), tower=EXACT, projector=EXACT, language=EXACT) as llava:
        (ours,) = rows_of(llava.gallery.vision, [video])
        with torch.no_grad():
            seen = made.model.get_video_features(
                frames[None], vision_feature_layer=-1, vision_feature_select_strategy="full"
            )
        wanted = getattr(seen, "pooler_output", seen).flatten(0, -2)  # with the one newline at its end
        assert len(ours) == count(llava.gallery.vision, video) == 5 * 4 + 1
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)
        prompt = prompt_of(llava.composer, [video, "What happens?"])
        ids = torch.tensor([prompt.ids(made.model.config.video_token_id)])
        with torch.no_grad():
            theirs = made.model(input_ids=ids, pixel_values_videos=frames[None]).logits[0]
            logits = logits_of(llava.engine, prompt)
        torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["1.5", "1.6-vicuna", "interleave"])
def test_a_video_is_refused_by_models_of_pictures(tmp_path: Path, drawn: Drawn, name: str) -> None:
    with (
        trifocal.load(checkpoint=str(save_hf(family(name), tmp_path))) as llava,
        pytest.raises(BadImage, match="not videos"),
    ):
        llava.complete([llava.question("What?", [from_frames([drawn(1), drawn(2)])])])


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_holds_the_same_tensors(tmp_path: Path, name: str) -> None:
    made = family(name)
    folders = [save_hf(made, tmp_path / spelling, spelling=spelling) for spelling in ("hub", "nested", "fresh", "raw")]
    folders.append(save_hf(made, tmp_path / "sharded", shards=3))
    folders.append(save_original(made, tmp_path / "original", shards=2))
    folders.append(save_original(made, tmp_path / "pickled", pickle=True))
    for part in ("tower", "projector", "language"):
        first, *others = (part_weights(folder, part, allow_pickle=True) for folder in folders)
        for other in others:
            assert set(first) == set(other) != set()
            assert all(torch.equal(first[name], other[name]) for name in first)
