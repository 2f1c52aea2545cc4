"""Image processors: every flag and spelling of their files is followed, as the original's numpy did it, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

import original
from checkpoint_maker import preprocessor
from trifocal.checkpoints import CLIP_MEAN, CLIP_STD, Frames, Preprocessing, Tiling, Tower
from trifocal.checkpoints.processors import preprocessing_part
from trifocal.checkpoints.tilings import Layout
from trifocal.errors import CheckpointError
from trifocal.images import Image, from_frames, from_pil
from trifocal.vision import preprocessing as preparing
from trifocal.vision import way_of

SIDE = 56
CLIP = Tower(Path(), 8, 2, 2, 16, SIDE, 14)
SIGLIP = Tower(Path(), 8, 2, 2, 16, SIDE, 14, kind="siglip", keep_first=True)
BOTH = {"height": SIDE, "width": SIDE}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def read(folder: Path, config: dict[str, Any], tower: Tower = CLIP, aspect: str | None = None) -> Preprocessing:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return preprocessing_part(folder, tower, aspect, Layout())


def pixels(picture: Image, preprocessing: Preprocessing) -> torch.Tensor:
    """What the tower is given of a picture, ``[squares, 3, side, side]``."""
    return preparing.pixels(way_of(picture, preprocessing, CLIP).squares(picture), preprocessing)


def full(config: dict[str, Any]) -> dict[str, Any]:
    return {**preprocessor(SIDE), **config}


# what a file says -> the same in the plain words that the reference reads
FOLLOWED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no rescale": ({"do_rescale": False}, {"do_rescale": False}),
    "no normalise": ({"do_normalize": False}, {"do_normalize": False}),
    "neither": ({"do_rescale": False, "do_normalize": False}, {"do_rescale": False, "do_normalize": False}),
    "factor": ({"rescale_factor": 1 / 127.5}, {"rescale_factor": 1 / 127.5}),
    "factor null": ({"rescale_factor": None}, {}),
    "mean a number": ({"image_mean": 0.5, "image_std": 0.25}, {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}),
    "mean zero": ({"image_mean": [0, 0.0, 0], "image_std": 1}, {"image_mean": [0] * 3, "image_std": [1] * 3}),
    "mean null": ({"image_mean": None, "image_std": None}, {}),
    "raw mean": ({"do_rescale": False, "image_mean": 127.5}, {"do_rescale": False, "image_mean": [127.5] * 3}),
    "size a number": ({"size": SIDE, "crop_size": SIDE}, {}),
    "size a table": ({"size": {"shortest_edge": SIDE}, "crop_size": BOTH}, {}),
    "larger, then cropped": ({"size": 64}, {"size": {"shortest_edge": 64}}),
    "smaller, then bordered": ({"size": {"shortest_edge": 40}}, {"size": {"shortest_edge": 40}}),
    "both sides": ({"size": BOTH}, {"size": BOTH}),
    "a pair": ({"size": [SIDE, SIDE], "crop_size": [SIDE, SIDE]}, {"size": BOTH}),
    "both sides, no crop": ({"size": BOTH, "do_center_crop": False}, {"size": BOTH, "do_center_crop": False}),
    "both sides, then cropped": (
        {"size": {"height": 64, "width": 64}, "crop_size": SIDE},
        {"size": {"height": 64, "width": 64}},
    ),
    "a crop that is off": ({"size": BOTH, "do_center_crop": False, "crop_size": 20}, {"size": BOTH}),
    "null everywhere": ({"resample": None, "size": None, "crop_size": None, "do_pad": None}, {}),
    **{
        f"resample {value!r}": ({"resample": value}, {"resample": number})
        for value, number in (
            (0, 0),
            (1, 1),
            (2, 2),
            ("bilinear", 2),
            ("BICUBIC", 3),
            ("PILImageResampling.LANCZOS", 1),
            ("InterpolationMode.NEAREST", 0),
        )
    },
}


@pytest.mark.parametrize("case", FOLLOWED)
@pytest.mark.parametrize("size", [(80, 60), (41, 90), (56, 56)])
def test_a_flag_is_followed(tmp_path: Path, drawn: Callable[..., Image], case: str, size: tuple[int, int]) -> None:
    said, plain = FOLLOWED[case]
    picture = drawn(1, *size)
    (ours,) = pixels(picture, read(tmp_path, full(said)))
    assert torch.equal(ours, original.values(picture.pixels, full(plain)))


@pytest.mark.parametrize(
    ("named", "fit"), [("CLIPImageProcessor", "crop"), ("LlavaImageProcessor", "pad"), (None, "pad")]
)
def test_do_pad_is_heard_by_the_classes_that_pad(tmp_path: Path, named: str | None, fit: str) -> None:
    assert read(tmp_path, full({"do_pad": True, "image_processor_type": named})).fit == fit
    old = {"do_pad": True, "image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"}
    assert read(tmp_path, full(old)).fit == "crop"


@pytest.mark.parametrize("size", [{}, {"size": SIDE}, {"size": BOTH}, {"size": [SIDE, SIDE]}])
def test_siglip_stretches_whatever_its_size_is_written_as(
    tmp_path: Path, drawn: Callable[..., Image], size: dict[str, Any]
) -> None:
    picture = drawn(1, 80, 60)
    (ours,) = pixels(picture, read(tmp_path, {**size, **HALF}, SIGLIP))
    assert torch.equal(ours, original.values(picture.pixels, {"size": BOTH, **HALF}))


@pytest.mark.parametrize(
    ("named", "mean", "crops"),
    [
        ("CLIPImageProcessor", CLIP_MEAN, True),
        ("LlavaNextImageProcessorFast", CLIP_MEAN, True),
        ("LlavaOnevisionImageProcessor", CLIP_MEAN, False),
        ("SiglipImageProcessor", (0.5, 0.5, 0.5), False),
        ("SigLipImageProcessor", (0.5, 0.5, 0.5), False),
    ],
)
@pytest.mark.parametrize("tower", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_what_a_file_leaves_to_its_class_is_the_classes(
    tmp_path: Path, tower: Tower, named: str, mean: tuple[float, ...], crops: bool
) -> None:
    """A class that does not crop hears no ``crop_size``: transformers' SigLIP made 56 pixels of this, not 28."""
    found = read(tmp_path, {"image_processor_type": named, "size": BOTH}, tower)
    assert found.mean == mean
    assert read(tmp_path, {"image_processor_type": named}, tower).fit == ("crop" if crops else "stretch")
    smaller = {"image_processor_type": named, "size": BOTH, "crop_size": {"height": 28, "width": 28}}
    if crops:
        with pytest.raises(CheckpointError, match="pictures of 28 pixels for a tower that takes 56"):
            read(tmp_path, smaller, tower)
    else:
        assert read(tmp_path, smaller, tower) == found


def test_of_two_files_the_newer_one_is_read(tmp_path: Path) -> None:
    """As transformers 5 does it; a ``processor_config.json`` of before tells nothing of pictures."""
    newer = tmp_path / "processor_config.json"
    newer.write_text(json.dumps({"image_processor": full({"image_mean": 0.25})}))
    assert read(tmp_path, full({})).mean == (0.25,) * 3
    newer.write_text(json.dumps({"processor_class": "LlavaProcessor", "patch_size": 14}))
    assert read(tmp_path, full({})).mean == CLIP_MEAN


@pytest.mark.parametrize("said", [{}, {"do_normalize": False}, {"size": 64}, {"image_mean": 1.5}, {"image_mean": -0.1}])
def test_padded_pictures_follow_too(tmp_path: Path, drawn: Callable[..., Image], said: dict[str, Any]) -> None:
    picture = drawn(1, 80, 61)
    plain = full(said)
    if isinstance(plain["size"], int):
        plain["size"] = {"shortest_edge": plain["size"]}
    if not isinstance(plain["image_mean"], list):
        plain["image_mean"] = [plain["image_mean"]] * 3
    (ours,) = pixels(picture, read(tmp_path, full(said), aspect="pad"))
    assert torch.equal(ours, original.values(original.square(picture.pixels, plain), plain))


def test_a_crop_that_is_off_is_no_matter_where_pictures_are_padded(tmp_path: Path) -> None:
    off = full({"do_center_crop": False})
    assert read(tmp_path, off, aspect="pad").fit == "pad"
    with pytest.raises(CheckpointError, match=r"do_center_crop is false.*set it to true"):
        read(tmp_path, off)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"do_resize": False}, "do_resize is false"),
    ({"do_normalize": "no"}, "do_normalize is 'no', true or false"),
    ({"do_flip_channel_order": True}, "do_flip_channel_order is True, a step that is not supported"),
    ({"do_thumbnail": True}, "do_thumbnail is True"),
    ({"do_align_long_axis": True}, "do_align_long_axis"),
    ({"do_image_splitting": True}, "do_image_splitting"),
    ({"crop_pct": 0.875}, "crop_pct is 0.875"),
    ({"rescale_offset": True}, "rescale_offset"),
    ({"pad_size": {"height": 64, "width": 64}}, "pad_size"),
    ({"crop_size": 64}, "pictures of 64 pixels for a tower that takes 56"),
    ({"crop_size": {"height": 56, "width": 64}}, "crop_size is"),
    ({"size": {"height": 56, "width": 64}}, "size is"),
    ({"size": {"shortest_edge": 56, "longest_edge": 100}}, "size is"),
    ({"size": {"max_height": 56}}, "size is"),
    ({"size": "56"}, "size is '56'"),
    ({"size": True}, "size is True"),
    ({"size": {"height": 64, "width": 64}, "do_center_crop": False}, "pictures of 64 pixels"),
    ({"resample": 6}, "resample is 6"),
    ({"resample": True}, "resample is True"),
    ({"resample": 2.5}, "resample is 2.5"),
    ({"image_mean": ["a", 0, 0]}, "image_mean is 'a'"),
    ({"image_std": 0}, "image_std is 0"),
    ({"rescale_factor": 0}, "rescale_factor is 0"),
]


@pytest.mark.parametrize(
    ("said", "message"), REFUSED, ids=[next(iter(said)) + str(at) for at, (said, _) in enumerate(REFUSED)]
)
def test_what_is_not_followed_is_refused_by_its_key(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, full(said))


@pytest.mark.parametrize(
    "said",
    [{"do_convert_rgb": False}, {"do_reduce_labels": True}, {"do_flip_channel_order": False}, {"do_thumbnail": None}],
)
def test_a_flag_that_changes_nothing_here_is_no_matter(tmp_path: Path, said: dict[str, Any]) -> None:
    assert read(tmp_path, full(said)) == read(tmp_path, full({}))


def test_each_of_the_768_values_is_rescaled_as_numpy_did_it(tmp_path: Path) -> None:
    """Bytes times 1/255 in float64 and then in float32: in float32 alone 325 of the 768 differ in the last bit."""
    every = np.arange(256, dtype=np.uint8)
    grid = np.stack([np.resize(every, (SIDE, SIDE))] * 3, -1)
    (ours,) = pixels(from_pil(Pictures.fromarray(grid)), read(tmp_path, preprocessor(SIDE)))
    wanted = ((every * (1 / 255)).astype(np.float32)[:, None] - np.array(CLIP_MEAN, np.float32)) / np.array(
        preprocessor(SIDE)["image_std"], np.float32
    )
    assert torch.equal(ours.flatten(1)[:, :256].T, torch.from_numpy(wanted))


@pytest.mark.parametrize("newer", [False, True], ids=["of its own", "nested"])
def test_frames_are_prepared_as_the_video_processors_file_says(
    tmp_path: Path, drawn: Callable[..., Image], newer: bool
) -> None:
    """OneVision's class of videos has CLIP's mean where its file tells none; pictures keep their own."""
    said = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": BOTH, "do_sample_frames": True}
    file, told = (
        ("processor_config.json", {"video_processor": said}) if newer else ("video_preprocessor_config.json", said)
    )
    (tmp_path / file).write_text(json.dumps(told))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": BOTH, **HALF}))
    found = preprocessing_part(tmp_path, SIGLIP, None, Layout(video=Frames()))
    video = from_frames([drawn(seed, 80, 60) for seed in range(2)])
    clip = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    for image, frames, means in ((video, video.frames, clip), (drawn(0, 80, 60), [drawn(0, 80, 60).pixels], HALF)):
        way = way_of(image, found, SIGLIP)
        wanted = torch.stack([original.values(frame, {"size": BOTH, **means}) for frame in frames])
        assert torch.equal(preparing.pixels(way.squares(image), way.preprocessing), wanted)
    assert found.mean == (0.5,) * 3


def test_frames_are_prepared_as_pictures_where_no_file_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"size": BOTH, **HALF}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": BOTH, **HALF}))
    found = preprocessing_part(tmp_path, SIGLIP, "pad", Layout(video=Frames()))
    assert found.of_frames is found
    assert found.video == Frames(fit="stretch")


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (replace(CLIP, keep_first=True), "the class token is kept"),
        (replace(SIGLIP, keep_first=False), "SigLIP's first patch is left away"),
    ],
    ids=["clip", "siglip"],
)
def test_rows_that_are_no_grid_are_told_by_what_makes_them_so(tmp_path: Path, tower: Tower, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        preprocessing_part(tmp_path, tower, None, Layout(tiles=Tiling(pinpoints=((SIDE, SIDE),))))
