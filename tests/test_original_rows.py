"""Pictures and videos of original checkpoints: pixels, rows and their count held against the original's arithmetic."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlavaNextConfig, LlavaNextVideoConfig, LlavaOnevisionConfig

import original
from checkpoint_maker import shaken, tensors_of
from layouts import NEXT_PINPOINTS, ONEVISION_PINPOINTS, TILE, Family, family, save_original
from seeing import count, rows_of
from trifocal.checkpoints import Checkpoint, Preprocessing, Tower, find_checkpoint, from_folder
from trifocal.checkpoints.tilings import hf_layout, original_layout
from trifocal.errors import BadImage, CheckpointError
from trifocal.images import Image, from_frames
from trifocal.placement import Placement
from trifocal.vision import way_of
from trifocal.vision.llava import LlavaVision
from trifocal.vision.loading import load_vision

Drawn = Callable[..., Image]
EXACT = Placement("cpu", "float32")
SIZES = [(80, 60), (60, 80), (112, 112), (300, 91), (57, 170), (400, 380), (33, 3)]
# the sizes and keys of the released configurations
SIGLIP = Tower(Path("config.json"), 1152, 27, 16, 4304, 384, 14, kind="siglip", keep_first=True)
INTERLEAVE = {
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
    "mm_patch_merge_type": "spatial_unpad",
    "image_crop_resolution": 224,
    "image_split_resolution": 224,
}
LLAVA_VIDEO = {
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_newline_position": "grid",
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "add_faster_video": False,
    "faster_token_stride": 10,
}


def released(config: Mapping[str, Any]) -> Preprocessing:
    layout = original_layout(Path("config.json"), config, 384, siglip=True)
    return Preprocessing(384, "stretch", tiles=layout.tiles, newline=layout.newline, video=layout.video)


def test_interleaves_real_configuration_is_one_square_and_a_newline(drawn: Drawn) -> None:
    picture, how = drawn(1, 640, 480), released(INTERLEAVE)
    assert how.tiles is None
    assert way_of(picture, how, SIGLIP).rows == 730
    assert way_of(picture, how, SIGLIP, alone=False).rows == 730
    assert way_of(picture, released({**INTERLEAVE, "mm_patch_merge_type": "flat"}), SIGLIP).rows == 729


@pytest.mark.parametrize(
    ("position", "mode", "stride", "rows"),
    [
        ("grid", "bilinear", 2, 630),
        ("frame", "bilinear", 2, 591),
        ("one_token", "bilinear", 2, 589),
        ("no_token", "bilinear", 2, 588),
        ("one_token", "average", 2, 508),
        ("one_token", "max", 2, 508),
        ("grid", "average", 4, 3 * 6 * 7),
        ("grid", "bilinear", 4, 3 * 7 * 8),
        ("frame", "max", 1, 3 * 730),
    ],
)
def test_the_rows_of_three_frames(drawn: Drawn, position: str, mode: str, stride: int, rows: int) -> None:
    video = from_frames([drawn(seed, 64, 48) for seed in range(3)])
    keys = {"mm_newline_position": position, "mm_spatial_pool_mode": mode, "mm_spatial_pool_stride": stride}
    assert way_of(video, released({**LLAVA_VIDEO, **keys}), SIGLIP).rows == rows


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mm_newline_position", "row"),
        ("mm_spatial_pool_mode", "conv"),
        ("mm_spatial_pool_stride", 0),
        ("mm_spatial_pool_stride", "2"),
        ("add_faster_video", True),
        ("mm_patch_merge_type", "spatial_padded"),
    ],
)
def test_a_layout_that_is_not_known_is_told_by_its_key(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        released({**LLAVA_VIDEO, key: value})


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [
        ("(1x1),(2x2)", (384, 384), (768, 768)),
        ("[(1x1), ..., (3x2)]", (384, 384), (1152, 768)),
        ("(2x2)", (768, 768), (768, 768)),
        ("(1x1)-(2x6)", (384, 384), (768, 2304)),
    ],
)
def test_a_range_of_canvases_is_its_first_and_last_pair(
    said: str, first: tuple[int, int], last: tuple[int, int]
) -> None:
    tiles = released({**LLAVA_VIDEO, "image_grid_pinpoints": said}).tiles
    assert tiles is not None
    assert (tiles.pinpoints[0], tiles.pinpoints[-1]) == (first, last)
    assert len(tiles.pinpoints) == (1 + (last[0] - first[0]) // 384) * (1 + (last[1] - first[1]) // 384)


def test_canvases_that_cannot_be_read_are_told() -> None:
    with pytest.raises(CheckpointError, match=r"image_grid_pinpoints is 1x1 to 6x6; pairs of multiples of 384"):
        released({**LLAVA_VIDEO, "image_grid_pinpoints": "1x1 to 6x6"})


@pytest.mark.parametrize(
    ("kind", "side", "wanted"),
    [(LlavaNextConfig, 336, 5), (LlavaNextVideoConfig, 336, 5), (LlavaOnevisionConfig, 384, 36)],
)
def test_canvases_that_are_not_told_are_those_of_the_class(tmp_path: Path, kind: Any, side: int, wanted: int) -> None:
    file = tmp_path / "config.json"
    tiles = hf_layout(file, {"model_type": kind.model_type}, side).tiles
    assert tiles is not None
    assert len(tiles.pinpoints) == wanted
    assert [[high, wide] for wide, high in tiles.pinpoints] == kind().image_grid_pinpoints


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Family, Path]]:
    """One model with each tower, saved as the original saved it; the tests change the configuration's keys."""
    made = {"siglip": family("onevision"), "clip": family("1.6-vicuna")}
    return {kind: (each, save_original(each, tmp_path_factory.mktemp(kind))) for kind, each in made.items()}


def opened(folder: Path, keys: Mapping[str, Any]) -> tuple[LlavaVision, dict[str, Any]]:
    """What sees a checkpoint whose configuration has these keys; None takes one away."""
    checkpoint, config = told(folder, keys)
    return load_vision(checkpoint, EXACT, EXACT), config


def told(folder: Path, keys: Mapping[str, Any]) -> tuple[Checkpoint, dict[str, Any]]:
    file = folder / "config.json"
    before = file.read_text()
    config = {key: value for key, value in {**json.loads(before), **keys}.items() if value is not None}
    try:
        file.write_text(json.dumps(config))
        return find_checkpoint(str(folder)), config
    finally:
        file.write_text(before)


def processor(folder: Path) -> dict[str, Any]:
    home = json.loads((folder / "config.json").read_text())["mm_vision_tower"]
    given: dict[str, Any] = json.loads((Path(home) / "preprocessor_config.json").read_text())
    return given


MERGES = ["flat", "spatial", "spatial_unpad", "spatial_maxpool2x2", "spatial_unpad_nobase", "spatial_maxpool2x2_nobase"]
PICTURES = [
    *[("clip", {"image_aspect_ratio": "anyres", "mm_patch_merge_type": merge}) for merge in MERGES],
    ("clip", {"image_aspect_ratio": "pad", "mm_patch_merge_type": "spatial_unpad"}),
    ("clip", {"image_aspect_ratio": "square", "mm_patch_merge_type": "spatial_unpad"}),
    ("clip", {"image_aspect_ratio": None, "mm_patch_merge_type": "spatial"}),
    ("clip", {"image_aspect_ratio": "anyres_max_2", "mm_patch_merge_type": "spatial_unpad"}),
    *[("siglip", {"image_aspect_ratio": "anyres_max_4", "mm_patch_merge_type": merge}) for merge in MERGES],
    ("siglip", {"image_aspect_ratio": "pad", "mm_patch_merge_type": "spatial_unpad"}),
    ("siglip", {"image_aspect_ratio": None, "mm_patch_merge_type": "spatial_unpad"}),
]


@pytest.mark.parametrize(
    ("kind", "keys"),
    PICTURES,
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_pixels_and_rows_of_pictures(
    families: dict[str, tuple[Family, Path]], drawn: Drawn, kind: str, keys: dict[str, Any]
) -> None:
    made, folder = families[kind]
    pinpoints = NEXT_PINPOINTS if kind == "clip" else ONEVISION_PINPOINTS
    vision, config = opened(folder, {**keys, "image_grid_pinpoints": pinpoints})
    newline = made.model.model.image_newline.detach()
    for size in SIZES:
        picture = drawn(3, *size)
        views = original.views(picture.pixels, config, processor(folder), TILE)
        assert torch.equal(vision.pixels(*vision.looks([picture])), views)
        wanted = original.rows(original.seen(made.model, views), newline, config, size, TILE)
        (ours,) = rows_of(vision, [picture])
        assert len(ours) == count(vision, picture) == len(wanted)
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


VIDEOS = [
    {"mm_newline_position": position, "mm_spatial_pool_mode": mode, "mm_spatial_pool_stride": stride, **merge}
    for position in ("grid", "frame", "one_token", "no_token", None)
    for mode, stride in (("average", 2), ("max", 2), ("bilinear", 2), ("average", 3), ("bilinear", 5), ("max", 1))
    for merge in (
        {"mm_patch_merge_type": "spatial_unpad"},
        {"mm_patch_merge_type": "spatial"},
        {"mm_patch_merge_type": "flat"},
    )
]


def first_release(keys: Mapping[str, Any]) -> bool:
    return keys["mm_newline_position"] is None and keys["mm_spatial_pool_mode"] != "bilinear"


@pytest.mark.parametrize(
    ("keys", "mode", "stride"),
    [
        ({"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 2}, "average", 2),
        ({"mm_resampler_type": "spatial_pool"}, "average", 2),
        ({"mm_resampler_type": "spatial_pool", "mm_spatial_pool_mode": "max", "mm_spatial_pool_stride": 3}, "max", 3),
        ({"mm_spatial_pool_stride": 4}, "average", 4),
    ],
    ids=["average", "resampler", "max", "stride"],
)
def test_the_first_video_release_pooled_before_the_projector(
    families: dict[str, tuple[Family, Path]], drawn: Drawn, keys: dict[str, Any], mode: str, stride: int
) -> None:
    """LLaVA-NeXT-Video with CLIP names no position of a newline, and has none; llava-hf's copies are the same."""
    made, folder = families["clip"]
    video = from_frames([drawn(seed, 90, 70) for seed in range(3)])
    vision, _ = opened(folder, keys)
    views = torch.stack([original.values(frame, processor(folder)) for frame in video.frames])
    wanted = original.seen_early(
        made.model, views, {"mm_spatial_pool_mode": mode, "mm_spatial_pool_stride": stride}
    ).flatten(0, 1)
    (ours,) = rows_of(vision, [video])
    assert len(ours) == count(vision, video) == len(wanted)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)
    picture = drawn(3, 300, 91)
    before, _ = opened(folder, {})
    assert torch.equal(rows_of(vision, [picture])[0], rows_of(before, [picture])[0])


class Block(torch.nn.Module):
    """LLaVA-NeXT's residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pre_norm = torch.nn.LayerNorm(width)
        self.proj = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU(), torch.nn.Linear(width, width))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = self.pre_norm(rows)
        return rows + self.proj(rows)


def projector_of(kind: str, taken: int, made: int) -> torch.nn.Sequential:
    """What the original's ``build_vision_projector`` makes."""
    linears, blocks = (int(number) for number in re.findall(r"\d", kind + "0")[:2])
    layers: list[torch.nn.Module] = [torch.nn.Linear(taken, made)]
    for _ in range(1, linears):
        layers += [torch.nn.GELU(), torch.nn.Linear(made, made)]
    return torch.nn.Sequential(*layers, *(Block(made) for _ in range(blocks)))


@pytest.mark.parametrize("kind", ["mlp1x_gelu", "mlp3x_gelu", "mlp2x_res2x_gelu", "mlp1x_res1x_gelu"])
def test_projectors_of_every_depth(tmp_path: Path, drawn: Drawn, kind: str) -> None:
    made = family("1.5")
    folder = save_original(made, tmp_path)
    wanted = shaken(projector_of(kind, 32, 64), seed=4)
    tensors = {name: tensor for name, tensor in tensors_of(folder).items() if "mm_projector" not in name}
    tensors |= {f"model.mm_projector.{name}": tensor for name, tensor in wanted.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    vision, _ = opened(folder, {"mm_projector_type": kind})
    square = vision.pixels(*vision.looks([drawn(1, 90, 60)]))
    with torch.no_grad():
        rows = wanted(made.model.model.vision_tower(square, output_hidden_states=True).hidden_states[-2][:, 1:])[0]
    torch.testing.assert_close(rows_of(vision, [drawn(1, 90, 60)])[0], rows, atol=1e-5, rtol=0)


def test_a_bias_that_is_missing_beside_another_is_told(tmp_path: Path) -> None:
    folder = save_original(family("1.5"), tmp_path)
    tensors = tensors_of(folder)
    del tensors["model.mm_projector.2.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2\.bias is missing"):
        opened(folder, {})


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_rows_of_videos(families: dict[str, tuple[Family, Path]], drawn: Drawn, kind: str) -> None:
    made, folder = families[kind]
    video = from_frames([drawn(seed, 90, 70) for seed in range(3)])
    newline = made.model.model.image_newline.detach()
    views = torch.stack([original.values(frame, processor(folder)) for frame in video.frames])
    each = original.seen(made.model, views)
    loaded, _ = opened(folder, VIDEOS[0])
    assert loaded.newline is not None
    for keys in VIDEOS if kind == "siglip" else [keys for keys in VIDEOS if not first_release(keys)]:
        checkpoint, config = told(folder, keys)
        vision = LlavaVision(
            loaded.tower,  # the weights are the same whatever is told of videos
            loaded.projector,
            checkpoint.preprocessing,
            hidden=loaded.hidden,
            identity=loaded.identity,
            newline=loaded.newline if checkpoint.preprocessing.has_newline else None,
        )
        assert torch.equal(vision.pixels(*vision.looks([video])), views)
        wanted = original.video_rows(each, newline, config)
        (ours,) = rows_of(vision, [video])
        assert len(ours) == count(vision, video) == len(wanted), keys
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_a_picture_beside_a_video_is_seen_in_tiles(families: dict[str, tuple[Family, Path]], drawn: Drawn) -> None:
    """Several pictures are squares; transformers' image processor knows nothing of the prompt's videos."""
    keys = {"image_aspect_ratio": "anyres_max_4", "image_grid_pinpoints": ONEVISION_PINPOINTS}
    vision, _ = opened(families["siglip"][1], keys)
    picture, video = drawn(3, 300, 91), from_frames([drawn(1), drawn(2)])
    (alone,) = rows_of(vision, [picture])
    assert torch.equal(rows_of(vision, [picture, video])[0], alone)
    assert torch.equal(rows_of(vision, [video, picture])[1], alone)
    assert [len(rows) for rows in rows_of(vision, [picture, video, drawn(4)])][::2] == [17, 17]


def test_a_checkpoint_that_says_nothing_of_videos_takes_none(
    families: dict[str, tuple[Family, Path]], drawn: Drawn
) -> None:
    vision, _ = opened(families["clip"][1], {})
    with pytest.raises(BadImage, match="not videos"):
        rows_of(vision, [from_frames([drawn(1), drawn(2)])])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mm_vision_select_feature": "cls_patch"}, "class token is kept"),
        (
            {"mm_spatial_pool_mode": "max", "mm_spatial_pool_stride": 5},
            r"mm_spatial_pool_stride\) is 5, a frame has 4 patches",
        ),
        ({"s2": True}, "s2 is true: pictures seen at several sizes"),
    ],
)
def test_what_makes_no_grid_is_told(
    families: dict[str, tuple[Family, Path]], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(families["clip"][1], keys)


def test_a_resampler_is_told_by_its_tensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava", "mm_projector_type": "mlp2x_gelu"}')
    save_file({"model.vision_resampler.query": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"stands a resampler \(model\.vision_resampler\.query\), which is not"):
        from_folder(tmp_path)


def test_a_class_token_stands_before_each_flat_tiles_rows(
    families: dict[str, tuple[Family, Path]], drawn: Drawn
) -> None:
    keys = {"mm_vision_select_feature": "cls_patch", "mm_patch_merge_type": "flat", "mm_newline_position": "grid"}
    vision, _ = opened(families["clip"][1], keys)
    picture = drawn(1, 80, 60)
    views = len(vision.pixels(*vision.looks([picture])))
    assert count(vision, picture) == len(rows_of(vision, [picture])[0]) == views * 17
    with pytest.raises(BadImage, match="not videos"):
        vision.looks([from_frames([drawn(1), drawn(2)])])
