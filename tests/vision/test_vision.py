"""Vision: pixel values, the two parts on their placements, and the cache of what was seen."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from safetensors.torch import save_file

from checkpoint_maker import V0, make_hf15, make_v0, tensors_of
from seeing import count, rows_of
from trifocal.checkpoints import Checkpoint, Preprocessing, from_folder
from trifocal.checkpoints.parts import CLIP_MEAN, CLIP_STD
from trifocal.errors import CheckpointError, OutOfMemory
from trifocal.images import Image, from_bytes, from_pil
from trifocal.placement import Placement
from trifocal.timing import Timings
from trifocal.vision import BATCH, LlavaVision, VisionTransformer, load_vision, pixels, placing, shown

CPU = Placement("cpu", "float32")
Drawn = Callable[..., Image]


def plain(colour: tuple[int, ...], width: int = 56, height: int = 56) -> Image:
    """A picture of one colour."""
    return from_pil(Pictures.new("RGBA" if len(colour) == 4 else "RGB", (width, height), colour), name="plain")


def loaded(folder: Path, **values: object) -> LlavaVision:
    """The vision of an llava-hf folder, exact."""
    return load_vision(from_folder(folder), CPU, CPU, **values)


@pytest.fixture
def own(hf15: Path, tmp_path: Path) -> Path:
    """A llava-hf folder of one's own, to be spoilt."""
    return Path(shutil.copytree(hf15, tmp_path / "own"))


@pytest.mark.parametrize(
    ("colour", "values"),
    [
        ((0, 0, 0), (-1.792263, -1.752097, -1.480220)),
        ((255, 255, 255), (1.930336, 2.074884, 2.145897)),
        ((122, 116, 104), (-0.011254, -0.011196, -0.001333)),
    ],
)
def test_pixel_values_of_plain_colours(colour: tuple[int, int, int], values: tuple[float, float, float]) -> None:
    how = Preprocessing(56, "crop")
    made = pixels([shown(plain(colour, 70, 90), how)], how)[0]
    assert made.shape == (3, 56, 56)
    assert made.dtype == torch.float32
    wanted = torch.tensor(values)[:, None, None].expand(3, 56, 56)
    torch.testing.assert_close(made, wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(112, 56), (56, 112), (224, 56)])
def test_padding_shows_all_of_a_picture_and_cropping_its_middle(width: int, height: int) -> None:
    picture = Pictures.new("RGB", (width, height), (0, 255, 0))
    ends = (0, 0, 8, height) if width > height else (0, 0, width, 8)
    picture.paste((255, 0, 0), ends)
    image = from_pil(picture, name="with a red end")
    padded, cropped = (shown(image, Preprocessing(56, fit)) for fit in ("pad", "crop"))
    assert padded.getpixel((0, 0)) == (122, 116, 104)
    assert any(red > 200 and green < 60 for _, (red, green, _) in padded.getcolors(56 * 56))
    assert cropped.getcolors() == [(56 * 56, (0, 255, 0))]


def test_what_is_transparent_shows_the_background() -> None:
    seen = shown(plain((10, 20, 30, 0)), Preprocessing(56, "crop", background=(1, 2, 3)))
    assert seen.getcolors() == [(56 * 56, (1, 2, 3))]
    assert shown(plain((10, 20, 30, 0)), Preprocessing(56, "crop")).getpixel((0, 0)) == (255, 255, 255)


def test_only_the_blocks_that_are_needed_are_built(hf15: Path) -> None:
    config = from_folder(hf15).tower
    assert len(VisionTransformer(config).encoder.layers) == config.layers - 1
    assert len(VisionTransformer(replace(config, feature_layer=1)).encoder.layers) == 1


def test_every_step_is_timed_and_counted(hf15: Path, drawn: Drawn) -> None:
    vision, timings = loaded(hf15), Timings()
    with timings.collected():
        (rows,) = rows_of(vision, [drawn(1)])
    assert set(timings) == {"preprocess", "tower", "projector"}
    assert rows.shape == (count(vision, drawn(1)), vision.hidden) == (16, 64)
    before = dict(timings)
    rows_of(vision, [drawn(1)])
    assert timings == before


def test_a_picture_seen_alone_and_among_others_is_the_same(hf15: Path, drawn: Drawn) -> None:
    images = [drawn(seed) for seed in range(2 * BATCH + 3)]
    together, vision = rows_of(loaded(hf15), images), loaded(hf15)
    for image, rows in zip(images, together, strict=True):
        torch.testing.assert_close(rows_of(vision, [image])[0], rows, atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_nothing_seen_is_nothing(hf15: Path) -> None:
    assert rows_of(loaded(hf15), []) == []


def test_the_tower_sees_pictures_of_several_prompts_together(
    hf15: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = loaded(hf15)
    batches: list[int] = []
    tower = vision.tower.forward
    monkeypatch.setattr(vision.tower, "forward", lambda values: batches.append(len(values)) or tower(values))
    prompts = [[drawn(1)], [drawn(2), drawn(3)], [drawn(seed) for seed in range(4, 10)]]
    assert len(vision.see([look for images in prompts for look in vision.looks(images)])) == 9
    assert batches == [BATCH, 1]


def test_rows_do_not_carry_gradients(hf15: Path, drawn: Drawn) -> None:
    (rows,) = rows_of(loaded(hf15), [drawn(1)])
    assert not rows.requires_grad
    assert torch.is_grad_enabled()


def changed_weight(folder: Path, name: str) -> Path:
    """The folder with one number of one tensor a little larger."""
    tensors = tensors_of(folder)
    tensors[name].view(-1)[7] += 1e-3
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_identity_is_that_of_all_that_decides_over_the_rows(hf15: Path, own: Path) -> None:
    checkpoint = from_folder(hf15)
    identity = loaded(hf15).identity
    assert len(identity) == 64
    assert loaded(own).identity == identity
    variants: list[Checkpoint] = [
        checkpoint.seeing(preprocessing=replace(checkpoint.preprocessing, **{key: value}))
        for key, value in (
            ("fit", "pad"),
            ("resample", 2),
            ("rescale", 1 / 127.5),
            ("background", (0, 0, 0)),
            ("mean", (0.5,) * 3),
            ("std", (0.5,) * 3),
        )
    ]
    variants += [
        checkpoint.seeing(tower=replace(checkpoint.tower, **{key: value}))
        for key, value in (("feature_layer", -3), ("keep_first", True), ("act", "gelu"), ("eps", 1e-6), ("heads", 4))
    ]
    variants.append(checkpoint.seeing(projector=replace(checkpoint.projector, act="linear")))
    others = [load_vision(variant, CPU, CPU).identity for variant in variants]
    half = Placement("cpu", "bfloat16")
    others += [load_vision(checkpoint, half, CPU).identity, load_vision(checkpoint, CPU, half).identity]
    others.append(loaded(changed_weight(own, "multi_modal_projector.linear_2.weight")).identity)
    others.append(loaded(changed_weight(own, "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight")).identity)
    assert len({identity, *others}) == len(others) + 1


def test_each_part_has_its_own_precision(v0: V0, drawn: Drawn) -> None:
    checkpoint = from_folder(v0.language, tower=str(v0.tower), projector=str(v0.projector))
    exact = load_vision(checkpoint, CPU, CPU)
    mixed = load_vision(checkpoint, Placement("cpu", "bfloat16"), CPU)
    dtypes = [{value.dtype for value in part.parameters()} for part in (mixed.tower, mixed.projector)]
    assert dtypes == [{torch.bfloat16}, {torch.float32}]
    (ours,), (wanted,) = rows_of(mixed, [drawn(1)]), rows_of(exact, [drawn(1)])
    assert ours.dtype == torch.float32
    assert 0 < (ours - wanted).norm() / wanted.norm() < 0.03


def test_the_log_tells_time_and_memory_of_each_part(hf15: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="trifocal"):
        loaded(hf15)
    told = [record.getMessage() for record in caplog.records if record.name == "trifocal"]
    assert [line.split(":")[0] for line in told] == ["vision tower", "projector"]
    assert all(" MB on cpu in torch.float32, " in line and line.endswith(" s") for line in told)


@pytest.mark.parametrize(
    "words", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9", "MPS backend out of memory"]
)
@pytest.mark.parametrize("part", ["vision tower", "projector"])
def test_no_room_is_told_with_the_part(
    hf15: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch, words: str, part: str
) -> None:
    vision = loaded(hf15)

    def full(values: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(words)

    monkeypatch.setattr(vision.tower if part == "vision tower" else vision.projector, "forward", full)
    with pytest.raises(OutOfMemory, match=f"{part}: its device has no room"):
        rows_of(vision, [drawn(1)])


def test_no_room_while_loading_is_told_with_the_part(hf15: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(placing, "stored", full)
    with pytest.raises(OutOfMemory, match="vision tower"):
        loaded(hf15)


def test_other_errors_of_torch_stay_what_they_are(hf15: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = loaded(hf15)

    def broken(values: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes")

    monkeypatch.setattr(vision.tower, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        rows_of(vision, [drawn(1)])


TOWER = "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"
PROJECTOR = "multi_modal_projector.linear_1.weight"


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (TOWER, lambda t: None, r"vision tower: the tensor encoder.layers.1.mlp.fc1.weight is missing"),
        (TOWER, lambda t: t[:-1].clone(), r"fc1.weight is \[63, 32\], \[64, 32\] was expected"),
        (
            TOWER,
            lambda t: t * torch.nan,
            r"model.safetensors: encoder.layers.1.mlp.fc1.weight holds numbers that are not",
        ),
        (TOWER, lambda t: t.to(torch.int32), r"fc1.weight holds torch.int32, floating point"),
        (PROJECTOR, lambda t: None, r"the projector has no 0.weight; it has 0.bias, 2.bias, 2.weight"),
        (PROJECTOR, lambda t: t[:, 0].clone(), r"0.weight is \[64\], \[rows, columns\] was expected"),
        (PROJECTOR, lambda t: t[:, :-1].clone(), r"the projector takes features of 31, the tower makes 32"),
        (PROJECTOR, lambda t: t / 0, r"projector: .*model.safetensors: 0.weight holds numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    own: Path, name: str, spoil: Callable[[torch.Tensor], torch.Tensor | None], message: str
) -> None:
    tensors = tensors_of(own)
    spoilt = spoil(tensors.pop(name))
    save_file(tensors if spoilt is None else {**tensors, name: spoilt}, own / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        loaded(own)


def test_the_layers_that_are_not_needed_may_be_missing(own: Path, drawn: Drawn) -> None:
    (wanted,) = rows_of(loaded(own), [drawn(1)])
    unused = ("vision_tower.vision_model.encoder.layers.3.", "vision_tower.vision_model.post_layernorm.")
    tensors = {name: value for name, value in tensors_of(own).items() if not name.startswith(unused)}
    save_file(tensors, own / "model.safetensors")
    (rows,) = rows_of(loaded(own), [drawn(1)])
    assert torch.equal(rows, wanted)


def test_a_projector_with_layers_that_nobody_asked_for_is_refused(own: Path) -> None:
    tensors = tensors_of(own)
    save_file({**tensors, "model.mm_projector.4.weight": torch.ones(64, 64)}, own / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"said to be mlp2x, which has no 4\.weight"):
        loaded(own)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("projector_hidden_act", "relu6", "activation 'relu6' is not known"),
        ("hidden_act", "swish", "activation 'swish'"),
    ],
)
def test_activations_that_are_not_known_are_named(own: Path, key: str, value: str, message: str) -> None:
    config = json.loads((own / "config.json").read_text())
    (config if key in config else config["vision_config"])[key] = value
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        loaded(own)


def test_a_projector_of_an_unknown_kind_is_named(hf15: Path) -> None:
    checkpoint = from_folder(hf15)
    with pytest.raises(CheckpointError, match=r"mm_projector_type is 'resampler' .*not known; known: linear, mlp1x"):
        load_vision(checkpoint.seeing(projector=replace(checkpoint.projector, kind="resampler")), CPU, CPU)


@pytest.mark.parametrize(
    ("act", "function"),
    [
        ("gelu", torch.nn.GELU()),
        ("gelu_pytorch_tanh", torch.nn.GELU("tanh")),
        ("quick_gelu", lambda x: x / (1 + torch.exp(-1.702 * x))),
        ("linear", torch.nn.Identity()),
    ],
)
def test_a_projector_s_activation_is_the_one_that_is_named(
    own: Path, drawn: Drawn, act: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    checkpoint = from_folder(own)
    vision = load_vision(checkpoint.seeing(projector=replace(checkpoint.projector, act=act)), CPU, CPU)
    stored = tensors_of(own)
    first, second = (
        [stored[f"multi_modal_projector.linear_{at}.{kind}"] for kind in ("weight", "bias")] for at in (1, 2)
    )
    with torch.inference_mode():
        patches = vision.tower(vision.pixels(*vision.looks([drawn(1)])))[0]
        inner = function(torch.nn.functional.linear(patches, *first))
        wanted = torch.nn.functional.linear(inner, *second)
    torch.testing.assert_close(rows_of(vision, [drawn(1)])[0], wanted, atol=1e-5, rtol=0)


def test_parts_from_pickles_need_the_flag(tmp_path: Path, drawn: Drawn) -> None:
    places, twin = make_v0(tmp_path / "pickled", pickle=True), make_v0(tmp_path / "plain")
    checkpoint = from_folder(places.language, tower=str(places.tower), projector=str(places.projector))
    with pytest.raises(CheckpointError, match="allow-pickle"):
        load_vision(checkpoint, CPU, CPU)
    (rows,) = rows_of(load_vision(checkpoint, CPU, CPU, allow_pickle=True), [drawn(1)])
    other = from_folder(twin.language, tower=str(twin.tower), projector=str(twin.projector))
    assert torch.equal(rows, rows_of(load_vision(other, CPU, CPU), [drawn(1)])[0])


def test_sixteen_bit_files_are_read_into_any_precision(tmp_path: Path, drawn: Drawn) -> None:
    folder = make_hf15(tmp_path, dtype=torch.float16)
    vision = loaded(folder)
    assert {value.dtype for value in vision.tower.parameters()} == {torch.float32}
    assert torch.isfinite(rows_of(vision, [drawn(1)])[0]).all()


@pytest.mark.parametrize("size", [(3, 2000), (2000, 3)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_thin_picture_is_seen_as_the_original_sees_it(size: tuple[int, int], fit: Any) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = io.BytesIO()
    Pictures.fromarray(noise).save(data, "PNG")
    preprocessing = Preprocessing(56, fit, CLIP_MEAN, CLIP_STD)
    theirs = Pictures.fromarray(noise)
    if fit == "pad":
        square = Pictures.new("RGB", (2000, 2000), preprocessing.pad_colour)
        square.paste(theirs, ((2000 - size[0]) // 2, (2000 - size[1]) // 2))
        theirs = square
    resized = tuple(56 * side // min(theirs.size) for side in theirs.size)
    theirs = theirs.resize(resized, Pictures.Resampling.BICUBIC)
    left, top = (theirs.width - 56) // 2, (theirs.height - 56) // 2
    theirs = theirs.crop((left, top, left + 56, top + 56))
    assert shown(from_bytes(data.getvalue()), preprocessing).tobytes() == theirs.tobytes()
