"""The reference is a test: same weights, same features, same logits, same tokens.

llava-hf checkpoints are held against transformers' own `LlavaForConditionalGeneration`, LLaVA v0 against
`CLIPVisionModel`, a linear layer and `LlamaForCausalLM` put together by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image as Pictures
from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import trifocal
from checkpoint_maker import V0, Spelling, make_hf15, make_v0, tensors_of
from logits import logits_of
from seeing import count, prompt_of, rows_of
from trifocal.checkpoints import from_folder
from trifocal.images import Image
from trifocal.messages import Sampling
from trifocal.model.llava import Llava
from trifocal.placement import Placement
from trifocal.prompt import Prompt
from trifocal.vision import pixels, shown
from trifocal.weights.tensors import part_weights

Drawn = Callable[..., Image]
EXACT = Placement("cpu", "float32")
HALF = Placement("cpu", "bfloat16")
PATCHES = 16
ORDERS = {
    "one first": "i Q",
    "one middle": "Q i Q",
    "one last": "Q i",
    "three apart": "i Q i Q i",
    "three together": "Q i i i Q",
}


def parts_of(order: str, drawn: Drawn) -> list[str | Image]:
    seeds = iter(range(10))
    return [drawn(next(seeds)) if word == "i" else "What is shown here?" for word in order.split()]


def continued(model: torch.nn.Module, logits_of: Callable[..., torch.Tensor], count: int) -> list[int]:
    """Greedy ids, each from a fresh run over everything: no cache that could be wrong."""
    ids: list[int] = []
    for _ in range(count):
        ids.append(int(logits_of(ids)[-1].argmax()))
    return ids


@pytest.fixture(scope="module")
def hf_pair(hf15: Path) -> tuple[Llava, LlavaForConditionalGeneration]:
    reference = LlavaForConditionalGeneration.from_pretrained(hf15, dtype=torch.float32).eval()
    return trifocal.load(checkpoint=str(hf15), tower=EXACT, projector=EXACT, language=EXACT), reference


@pytest.fixture(scope="module")
def v0_pair(v0: V0) -> tuple[Llava, Callable[[Image], torch.Tensor], LlamaForCausalLM]:
    llava = trifocal.load(
        checkpoint=str(v0.language),
        tower_from=str(v0.tower),
        projector_from=str(v0.projector),
        tower=EXACT,
        projector=EXACT,
        language=EXACT,
    )
    eyes = CLIPVisionModel.from_pretrained(v0.tower).eval()
    from safetensors.torch import load_file

    projector = load_file(v0.projector)

    @torch.no_grad()
    def see(image: Image) -> torch.Tensor:
        values = reference_pixels(image, 56)
        patches = eyes(values, output_hidden_states=True).hidden_states[-2][:, 1:]
        seen = torch.nn.functional.linear(
            patches, projector["model.mm_projector.weight"], projector["model.mm_projector.bias"]
        )
        return seen[0]

    return llava, see, LlamaForCausalLM.from_pretrained(v0.language, dtype=torch.float32).eval()


def reference_pixels(image: Image, size: int, pad: bool = False) -> torch.Tensor:
    picture = image.pixels
    if pad:
        side = max(picture.size)
        square = Pictures.new("RGB", (side, side), (122, 116, 104))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return processor(picture, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (56, 56), (57, 56), (300, 91), (13, 40), (1000, 333)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_pixel_values_are_those_of_clip(hf15: Path, drawn: Drawn, size: tuple[int, int], fit: str) -> None:
    from dataclasses import replace

    preprocessing = replace(from_folder(hf15).preprocessing, fit=fit)
    image = drawn(1, *size)
    ours = pixels([shown(image, preprocessing)], preprocessing)
    torch.testing.assert_close(ours, reference_pixels(image, 56, pad=fit == "pad"), atol=1e-6, rtol=0)


def test_features_are_those_of_transformers(hf_pair: tuple[Llava, LlavaForConditionalGeneration], drawn: Drawn) -> None:
    llava, reference = hf_pair
    images = [drawn(seed) for seed in range(3)]
    seen = rows_of(llava.gallery.vision, images)
    with torch.no_grad():
        wanted = reference.get_image_features(torch.cat([reference_pixels(image, 56) for image in images]))
    wanted = getattr(wanted, "pooler_output", wanted)
    for ours, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("layer", "strategy"), [(-1, "default"), (-2, "full"), (2, "default"), (-4, "full")])
def test_every_layer_and_strategy(tmp_path: Path, drawn: Drawn, layer: int, strategy: str) -> None:
    folder = make_hf15(tmp_path, layer=layer, strategy=strategy)
    reference = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with trifocal.load(checkpoint=str(folder), tower=EXACT, projector=EXACT, language=EXACT) as llava:
        (ours,) = rows_of(llava.gallery.vision, [drawn(1)])
        assert len(ours) == count(llava.gallery.vision, drawn(1)) == PATCHES + (strategy == "full")
    with torch.no_grad():
        theirs = reference.get_image_features(reference_pixels(drawn(1), 56))
    torch.testing.assert_close(ours, getattr(theirs, "pooler_output", theirs)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_logits_and_64_tokens_are_those_of_transformers(
    hf_pair: tuple[Llava, LlavaForConditionalGeneration], drawn: Drawn, order: str
) -> None:
    llava, reference = hf_pair
    parts = parts_of(order, drawn)
    prompt = prompt_of(llava.composer, parts)
    image_id = reference.config.image_token_index
    ids = torch.tensor([prompt.ids(image_id)])
    values = torch.cat([reference_pixels(part, 56) for part in parts if isinstance(part, Image)])

    with torch.no_grad():
        theirs = reference(input_ids=ids, pixel_values=values).logits[0]
        ours = logits_of(llava.engine, prompt)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    wanted = reference.generate(
        input_ids=ids, pixel_values=values, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, ids.shape[1] :]
    assert [token.id for token in llava.engine.stream(prompt, Sampling(max_tokens=64, ignore_end=True))] == free_of_end(
        wanted.tolist(), llava, reference, ids, values
    )


def free_of_end(
    wanted: list[int], llava: Llava, reference: LlavaForConditionalGeneration, ids: torch.Tensor, values: torch.Tensor
) -> list[int]:
    """The reference's ids; where it would say the end token, a reference that may not say it."""
    if not set(wanted) & {2}:
        return wanted
    return reference.generate(
        input_ids=ids, pixel_values=values, max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=2,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()  # fmt: skip


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_v0_is_tower_linear_and_llama_put_together(
    v0_pair: tuple[Llava, Callable[[Image], torch.Tensor], LlamaForCausalLM], drawn: Drawn, order: str
) -> None:
    llava, see, language = v0_pair
    parts = parts_of(order, drawn)
    prompt = prompt_of(llava.composer, parts)
    patch, start, end = (llava.engine.tokenizer.token(name) for name in ("<im_patch>", "<im_start>", "<im_end>"))
    ids = prompt.ids(patch)
    table = language.get_input_embeddings().weight
    rows = []
    images = iter([part for part in parts if isinstance(part, Image)])
    at = 0
    while at < len(ids):
        if ids[at] == start:
            assert ids[at + 1 : at + 2 + PATCHES] == [patch] * PATCHES + [end]
            rows += [table[start][None], see(next(images)), table[end][None]]
            at += PATCHES + 2
        else:
            rows.append(table[ids[at]][None])
            at += 1
    spliced = torch.cat(rows)
    torch.testing.assert_close(prompt.splice(llava.engine.embed), spliced, atol=1e-5, rtol=0)
    with torch.no_grad():
        theirs = language(inputs_embeds=spliced[None]).logits[0]
        ours = logits_of(llava.engine, prompt)
        wanted = language.generate(
            inputs_embeds=spliced[None], max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0
        )[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert [
        token.id for token in llava.engine.stream(prompt, Sampling(max_tokens=64, ignore_end=True))
    ] == wanted.tolist()


def test_mixed_placements_stay_close_and_each_part_has_its_own(hf15: Path, drawn: Drawn) -> None:
    exact = trifocal.load(checkpoint=str(hf15), tower=EXACT, projector=EXACT, language=EXACT)
    prompts: list[Prompt] = []
    for tower, projector, language in [
        (HALF, EXACT, EXACT),
        (EXACT, HALF, EXACT),
        (EXACT, EXACT, HALF),
        (HALF, HALF, HALF),
    ]:
        mixed = trifocal.load(checkpoint=str(hf15), tower=tower, projector=projector, language=language)
        dtypes = [
            next(part.parameters()).dtype for part in (mixed.gallery.vision.tower, mixed.gallery.vision.projector)
        ]
        assert dtypes == [getattr(torch, place.dtype) for place in (tower, projector)]
        assert mixed.engine.parts[0].dtype == language.dtype
        prompts.append(prompt_of(mixed.composer, ["Q", drawn(1)]))
        (seen,), (wanted,) = (rows_of(one.gallery.vision, [drawn(1)]) for one in (mixed, exact))
        error = (seen.float() - wanted).norm() / wanted.norm()
        assert error < 0.03
        assert (error == 0) == (tower == projector == EXACT)
        with torch.inference_mode():
            ours = logits_of(mixed.engine, prompts[-1])[-1].float()
            true = logits_of(exact.engine, prompt_of(exact.composer, ["Q", drawn(1)]))[-1]
        assert (ours - true).norm() / true.norm() < 0.1


def test_bfloat16_gives_the_tokens_of_transformers_in_bfloat16(hf15: Path, drawn: Drawn) -> None:
    llava = trifocal.load(checkpoint=str(hf15), tower=EXACT, projector=EXACT, language=HALF)
    language = LlavaForConditionalGeneration.from_pretrained(hf15, dtype=torch.bfloat16).eval()
    prompt = prompt_of(llava.composer, [drawn(1), "What is shown here?"])
    spliced = prompt.splice(language.get_input_embeddings())
    wanted = language.model.language_model
    with torch.no_grad():
        theirs = language.lm_head(wanted(inputs_embeds=spliced[None]).last_hidden_state)[0].float()
        ours = logits_of(llava.engine, prompt).float()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    said = [token.id for token in llava.engine.stream(prompt, Sampling(max_tokens=64, ignore_end=True))]
    again = language.generate(
        inputs_embeds=spliced[None],
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
    )[0].tolist()
    assert said == again


@pytest.mark.parametrize("spelling", ["nested", "fresh", "raw"])
def test_every_spelling_of_names_holds_the_same_tensors(hf15: Path, tmp_path: Path, spelling: Spelling) -> None:
    other = make_hf15(tmp_path, spelling=spelling, shards=2)
    assert set(tensors_of(other)) != set(tensors_of(hf15))
    for part in ("tower", "projector", "language"):
        one, two = part_weights(hf15, part), part_weights(other, part)
        assert set(one) == set(two) != set()
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("family", ["hf15", "v0"])
def test_two_pictures_give_two_logits(
    family: str,
    hf_pair: tuple[Llava, LlavaForConditionalGeneration],
    v0_pair: tuple[Llava, Callable[[Image], torch.Tensor], LlamaForCausalLM],
    drawn: Drawn,
) -> None:
    llava = hf_pair[0] if family == "hf15" else v0_pair[0]
    with torch.inference_mode():
        one, two = (logits_of(llava.engine, prompt_of(llava.composer, [drawn(n), "Q"])) for n in (1, 2))
    assert (one[-1] - two[-1]).abs().max() > 1e-3


def test_pickled_projectors_need_the_flag(tmp_path: Path) -> None:
    places = make_v0(tmp_path, pickle=True)
    values = {
        "checkpoint": str(places.language),
        "tower_from": str(places.tower),
        "projector_from": str(places.projector),
    }
    with pytest.raises(trifocal.CheckpointError, match="allow-pickle"):
        trifocal.load(**values)
    with trifocal.load(**values, allow_pickle=True) as llava:
        assert llava.gallery.vision.hidden == 64
