"""Folders with the files that the releases have, no others: as released and taken apart, against the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from odd_texts import ODD
from test_generations import unmarked

import original
from checkpoint_maker import preprocessor
from families import Pair
from gguf_layout import save_gguf
from layouts import SENTINEL, TILE, ByHand, family
from logits import ends_of, greedy, logits_of
from original import seen
from releases import RELEASES, Made, Words
from seeing import prompt_of, rows_of
from trifocal import Message, Sampling, load
from trifocal.checkpoints import find_checkpoint
from trifocal.conversation.templates import Control, get_template
from trifocal.errors import CheckpointError
from trifocal.images import Image, from_frames
from trifocal.model.llava import Llava
from trifocal.placement import Placement
from trifocal.prompt import TokenSpan
from trifocal.tools.convert import join, split

EXACT = dict.fromkeys(("tower", "projector", "language"), Placement("cpu", "float32"))
JOINED = [
    "1.5",
    "1.5 LoRA",
    "1.5 GPTQ",
    "1.5 AWQ",
    "BakLLaVA",
    "TinyLLaVA",
    "llava-hf 1.5",
    "llava-hf BakLLaVA",
    "llava-hf TinyLLaVA",
    "llava-hf interleave",
]
WAYS = [
    *((name, "as released") for name in RELEASES),
    *((name, "split") for name in RELEASES if name != "MPT preview"),
    *((name, "join") for name in JOINED),
]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Made, Path]]:
    """A release by its name, made once, with its home."""

    @cache
    def made(name: str) -> tuple[Made, Path]:
        home = tmp_path_factory.mktemp("release")
        return RELEASES[name].make(home), home

    return made


@pytest.fixture
def release(
    releases: Callable[[str], tuple[Made, Path]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Made, Path]]:
    """The same, with what it has of the hub's cache in the cache's place."""

    def found(name: str) -> tuple[Made, Path]:
        made, home = releases(name)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        return made, home

    return found


def parts_of(made: Made, home: Path) -> Path:
    """The three folders that ``split`` writes of it."""
    out = home / "parts"
    if not out.exists():
        places = {key.removesuffix("_from"): place for key, place in made.places.items() if key != "checkpoint"}
        split(find_checkpoint(made.places["checkpoint"], **places), out, allow_pickle=True)
    return out


def places_of(made: Made, home: Path, way: str) -> dict[str, str]:
    """What opens it, as it was released or as our tools wrote it."""
    if way == "as released":
        return made.places
    out = parts_of(made, home)
    if way == "split":
        homes = {f"{half}_from": str(out / half) for half in ("tower", "projector")}
        return {"checkpoint": str(out / "language"), **homes}
    if not (home / "joined").exists():
        join(out, home / "joined")
    return {"checkpoint": str(home / "joined")}


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_release_answers_what_the_original_answers(
    name: str, way: str, release: Callable[[str], tuple[Made, Path]], drawn: Callable[..., Image]
) -> None:
    made, home = release(name)
    image = drawn(1, 130, 70)
    with load(**places_of(made, home, way), allow_pickle=True, **EXACT) as llava:
        assert llava.checkpoint.template == RELEASES[name].template
        check_ids(llava, made.words, image)
        rows = wanted_rows(made, llava, image)
        (ours,) = rows_of(llava.gallery.vision, [image])
        assert ours.shape == rows.shape
        assert (ours - rows).abs().max() < 1e-5
        check_answers(llava, made, image, rows)


def check_ids(llava: Llava, words: Words, image: Image) -> None:
    """Texts at the beginning, behind a picture and behind a control token."""
    for text in ODD:
        clean = unmarked(text, words.marks)
        outline = llava.composer.outline((clean, image, clean, Control(words.mark), clean))
        ids: list[int] = []
        for span in outline.spans:
            ids += span.ids if isinstance(span, TokenSpan) else [SENTINEL] * span.count
        rows = outline.looks[0].rows
        assert ids == words.encode(clean, f"{clean}{words.mark}{clean}", rows), clean


@torch.no_grad()
def wanted_rows(made: Made, llava: Llava, image: Image) -> torch.Tensor:
    """The picture's rows by the original's arithmetic; llava-hf's by transformers' own classes."""
    if not made.processor:
        return Pair(made.made, llava, pad=False).reference_rows([image])[0]
    views = original.views(image.pixels, made.config, made.processor, TILE)
    each = seen(made.made.model, views)
    newline = getattr(getattr(made.made.model, "model", None), "image_newline", torch.zeros(0))
    return original.rows(each, newline, made.config, image.pixels.size, TILE)


@torch.no_grad()
def check_answers(llava: Llava, made: Made, image: Image, rows: torch.Tensor) -> None:
    """A talk about a picture: its ids, the rows of its prompt, all logits, and 32 tokens by transformers' classes."""
    talk = [llava.question("What?", [image]), Message("assistant", "A cat."), Message("user", "Why?")]
    parts = llava.template.render(talk)
    at = next(at for at, part in enumerate(parts) if isinstance(part, Image))
    before, after = (
        "".join(part.name if isinstance(part, Control) else part for part in each)
        for each in (parts[:at], parts[at + 1 :])
    )
    prompt = prompt_of(llava.composer, parts)
    ids = torch.tensor(made.words.encode(before, after, len(rows)))
    assert prompt.ids(SENTINEL) == ids.tolist()
    model: Any = made.made.model.language if isinstance(made.made.model, ByHand) else made.made.model
    spliced = model.get_input_embeddings()(ids.clamp(min=0))
    spliced[ids == SENTINEL] = rows
    ours = prompt.splice(llava.engine.embed)
    assert (ours - spliced).abs().max() < 1e-5
    wanted = model(inputs_embeds=spliced[None]).logits[0]
    logits = logits_of(llava.engine, prompt)[:, : wanted.shape[1]]
    assert (logits - wanted).abs().max() < 1e-4
    ends = ends_of(llava.engine)
    said = [token.id for token in llava.engine.stream(prompt, Sampling(max_tokens=32, ignore_end=True))]
    assert said == greedy(model, said, ends, inputs_embeds=spliced[None])


TALKS = {
    "one each": ("<image>\nWhat is it?", "A cat.", "<image>\nAnd this?"),
    "after an answer": ("Hi there", "Hello!", "What is <image>, and <image> beside it?", "Two.", "Why?"),
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("name", ["1.5", "1.6 Mistral", "OneVision", "interleave"])
@torch.no_grad()
def test_several_pictures_over_several_turns(
    name: str, talk: Sequence[str], release: Callable[[str], tuple[Made, Path]], drawn: Callable[..., Image]
) -> None:
    """Ids and rows as the original cuts text at every picture; of several OneVision made padded squares."""
    made, home = release(name)
    pictures = [drawn(seed, *size) for seed, size in enumerate([(130, 70), (57, 170)])]
    left = iter(pictures)
    turns = [(text, *(next(left) for _ in range(text.count("<image>")))) for text in talk]
    roles = ("user", "assistant") * len(turns)
    bounded = "max" in str(made.config.get("image_aspect_ratio"))
    config = {**made.config, **({"image_aspect_ratio": "pad"} if bounded else {})}
    newline = getattr(made.made.model.model, "image_newline", torch.zeros(0))
    views = [original.views(picture.pixels, config, made.processor, TILE) for picture in pictures]
    rows = [
        original.rows(seen(made.made.model, each), newline, config, picture.pixels.size, TILE)
        for each, picture in zip(views, pictures, strict=True)
    ]
    with load(**places_of(made, home, "as released"), allow_pickle=True, **EXACT) as llava:
        parts = llava.template.render([Message(role, turn) for role, turn in zip(roles, turns, strict=False)])
        prompt = prompt_of(llava.composer, parts)
        ours = rows_of(llava.gallery.vision, pictures)
    text = "".join(getattr(part, "name", part) if not isinstance(part, Image) else "<image>" for part in parts)
    first, *rest = text.split("<image>")
    ids = made.words.encode(first, "", 1)
    ids = ids[: ids.index(SENTINEL)]
    for piece, each in zip(rest, rows, strict=True):
        ids += [SENTINEL] * len(each) + behind(made, piece)
    assert prompt.ids(SENTINEL) == ids
    for wanted, found in zip(rows, ours, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def behind(made: Made, text: str) -> list[int]:
    """The ids of a text behind a picture."""
    ids = made.words.encode("", text, 1)
    return ids[ids.index(SENTINEL) + 1 :]


@pytest.mark.parametrize("way", ["as released", "split"])
def test_llama_3_begins_twice_where_the_original_did(way: str, release: Callable[[str], tuple[Made, Path]]) -> None:
    """Its chat template writes a beginning token, and `tokenizer_image_token` puts one in front; transformers one."""
    made, home = release("NeXT Llama 3")
    turns = [f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "assistant")]
    once = made.words.encode(f"{turns[0]}S<|eot_id|>{turns[1]}Q<|eot_id|>{turns[2]}", "", 0)
    assert once.count(once[0]) == 1
    with load(**places_of(made, home, way), **EXACT) as llava:
        for name, wanted in ((llava.template.name, [once[0], *once]), ("llava_llama_3_hf", once)):
            parts = get_template(name).render([Message("system", "S"), Message("user", "Q")])
            assert prompt_of(llava.composer, parts).ids(SENTINEL) == wanted


@pytest.mark.parametrize("name", ["NeXT-Video", "LLaVA-Video", "llava-hf NeXT-Video"])
@torch.no_grad()
def test_videos_are_seen_as_the_original_saw_them(
    name: str, release: Callable[[str], tuple[Made, Path]], drawn: Callable[..., Image]
) -> None:
    """Three frames, as released and as ``split`` writes it; those of NeXT-Video are pooled before the projector."""
    made, home = release(name)
    video = from_frames([drawn(seed, 90, 70) for seed in range(3)])
    if made.processor:
        views = torch.stack([original.values(frame, made.processor) for frame in video.frames])
        each = seen(made.made.model, views)
        wanted = original.video_rows(each, made.made.model.model.image_newline, made.config)
        if name == "NeXT-Video":
            wanted = original.seen_early(made.made.model, views, made.config).flatten(0, 1)
    else:
        views = torch.stack([original.values(frame, preprocessor(TILE)) for frame in video.frames])
        wanted = made.made.model.get_video_features(views[None]).pooler_output[0]
    for way in ("as released", "split"):
        with load(**places_of(made, home, way), allow_pickle=True, **EXACT) as llava:
            (ours,) = rows_of(llava.gallery.vision, [video])
            assert ours.shape == wanted.shape
            assert (ours - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", [name for name in RELEASES if name not in JOINED])
def test_what_has_no_place_in_another_layout_is_told(name: str, release: Callable[[str], tuple[Made, Path]]) -> None:
    """``split`` knows no MPT, ``join``'s layout no linear projector and no newline."""
    made, home = release(name)
    with pytest.raises(CheckpointError, match=r"type 'mpt' can't be taken out|can be used as they are"):
        join(parts_of(made, home), home / "joined")


def test_a_pair_of_gguf_files_is_not_taken_apart(tmp_path: Path) -> None:
    """Its tokenizer has no files: a folder without one would be written, and never load."""
    save_gguf(family("1.5"), tmp_path, "F32")
    with pytest.raises(CheckpointError, match="its tokenizer lies in a GGUF file"):
        split(find_checkpoint(str(tmp_path)), tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_the_page_tells_each_release_and_what_writes_it() -> None:
    page = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text("utf-8")
    table = page.partition("| release | files |")[2].partition("\n\n")[0].splitlines()[2:]
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [cells[0] for cells in told] == [*RELEASES]
    ways = {(cells[0], each.strip("` ")) for cells in told for each in cells[2].split(",") if each}
    assert {(name, way) for name, way in ways if way != "delta"} == {each for each in WAYS if each[1] != "as released"}
    assert {name for name, way in ways if way == "delta"} == {name for name in RELEASES if name.endswith("delta")}
