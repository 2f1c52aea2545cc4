"""Deltas, splitting and joining: exact, checked before writing, never half a result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel, LlavaForConditionalGeneration

import trifocal
from checkpoint_maker import TEXT, V0, llama_tokenizer, make_hf15, make_v0, save_tokenizer, tensors_of
from layouts import family, save_hf, save_original
from seeing import rows_of
from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.cli import cli
from trifocal.conversation.brought import TOOLS, own_template, tool_template
from trifocal.conversation.templates import TEMPLATES
from trifocal.engines.language import open_language
from trifocal.errors import CheckpointError, UsageError
from trifocal.tools.convert import apply_delta, join, split
from trifocal.weights.tensors import part_weights

ROWS, ADDED, WIDTH = 40, 3, 32
HIDDEN = TEXT["hidden_size"]


def llama(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Tensors of a LLaMA of two blocks, float16, with the buffers that old files carry."""
    random = torch.Generator().manual_seed(seed)
    inner = TEXT["intermediate_size"]
    shapes = {
        "model.embed_tokens.weight": (rows, HIDDEN),
        "lm_head.weight": (rows, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(2):
        block = {f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        block |= {"mlp.gate_proj.weight": (inner, HIDDEN), "mlp.down_proj.weight": (HIDDEN, inner)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    made = {name: torch.randn(shape, generator=random).half() for name, shape in shapes.items()}
    made["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
    return made


def save(folder: Path, tensors: dict[str, torch.Tensor], *, pickle: bool, **config: Any) -> Path:
    """Two shards with an index, as the first releases had them."""
    folder.mkdir(parents=True)
    names = sorted(tensors)
    kind = "pytorch_model-0000{}-of-00002.bin" if pickle else "model-0000{}-of-00002.safetensors"
    places = {name: kind.format(1 + at % 2) for at, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == file}
        torch.save(part, folder / file) if pickle else save_file(part, folder / file)
    index = "pytorch_model.bin.index.json" if pickle else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({**TEXT, **config}))
    return folder


@pytest.fixture
def lineage(tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A base and a delta on disk, and what they make: `base + delta` on the base's rows."""
    base, delta = llama(ROWS, 0), llama(ROWS + ADDED, 1)
    delta["model.mm_projector.weight"] = torch.randn(HIDDEN, WIDTH).half()
    delta["model.mm_projector.bias"] = torch.randn(HIDDEN).half()
    merged = {name: tensor.clone() for name, tensor in delta.items() if "inv_freq" not in name}
    for name in merged.keys() & base.keys():
        merged[name][: len(base[name])] += base[name]
    one = save(tmp_path / "llama", base, pickle=True, model_type="llama")
    two = save(tmp_path / "delta", delta, pickle=False, model_type="llava", mm_hidden_size=WIDTH)
    save_tokenizer(llama_tokenizer(["<im_patch>"]), two)
    return one, two, merged


@pytest.mark.parametrize("shard", [1 << 40, 20_000])
def test_delta_is_added_on_the_rows_of_the_base(lineage: Any, tmp_path: Path, shard: int) -> None:
    base, delta, merged = lineage
    told: list[tuple[int, int]] = []
    done = apply_delta(
        base, delta, tmp_path / "out", shard=shard, allow_pickle=True, tell=lambda *now: told.append(now)
    )
    found = tensors_of(tmp_path / "out")
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], merged[name]) for name in merged)
    assert (done.tensors, done.bytes) == (len(merged), sum(tensor.nbytes for tensor in merged.values()))
    assert told[-1] == (done.bytes, done.bytes)
    assert told == sorted(told)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mm_hidden_size"] == WIDTH
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "delta", "out"}


def test_small_shards_have_an_index_that_names_them(lineage: Any, tmp_path: Path) -> None:
    base, delta, merged = lineage
    apply_delta(base, delta, tmp_path / "out", shard=20_000, allow_pickle=True)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == merged.keys()
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) > 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model.norm.weight": torch.zeros(HIDDEN + 1)}, r"'model.norm.weight' is \[64\], the delta's is \[65\]"),
        ({"model.embed_tokens.weight": torch.zeros(ROWS - 1, HIDDEN)}, r"is \[40, 64\], the delta's is \[39, 64\]"),
        ({"model.norm.weight": None}, "lacks 1 tensors of the base, first 'model.norm.weight'"),
        (
            {"model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)},
            "'model.layers.2.mlp.up_proj.weight' is not in the base",
        ),
        ({"model.norm.weight": torch.full((HIDDEN,), torch.nan)}, "not finite"),
        ({"something.else": torch.zeros(2)}, "'something.else' is no tensor of LLaMA"),
    ],
)
def test_what_does_not_belong_together_leaves_nothing(
    tmp_path: Path, change: dict[str, torch.Tensor | None], told: str
) -> None:
    base = save(tmp_path / "llama", llama(ROWS, 0), pickle=False, model_type="llama")
    changed = {name: tensor for name, tensor in {**llama(ROWS + 1, 1), **change}.items() if tensor is not None}
    delta = save(tmp_path / "delta", changed, pickle=False, model_type="llava")
    with pytest.raises(CheckpointError, match=told):
        apply_delta(base, delta, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "delta"}


def test_other_dims_and_a_merged_base_are_refused(lineage: Any, tmp_path: Path) -> None:
    base, delta, _ = lineage
    with pytest.raises(CheckpointError, match="it is a LLaVA itself"):
        apply_delta(delta, delta, tmp_path / "out")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    with pytest.raises(CheckpointError, match="hidden_size is 128, the delta's is 64"):
        apply_delta(base, delta, tmp_path / "out", allow_pickle=True)


def test_pickles_only_when_allowed(lineage: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        apply_delta(lineage[0], lineage[1], tmp_path / "out")


def test_an_existing_folder_and_a_full_disk_are_refused(
    lineage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        apply_delta(*lineage[:2], tmp_path / "out", allow_pickle=True)
    with pytest.raises(UsageError, match="is no folder"):
        apply_delta(*lineage[:2], tmp_path / "no" / "out", allow_pickle=True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UsageError, match=r"has room for 0\.0 GB"):
        apply_delta(*lineage[:2], tmp_path / "new", allow_pickle=True)
    assert not (tmp_path / "new").exists()


def test_an_interruption_leaves_nothing(lineage: Any, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_delta(*lineage[:2], tmp_path / "out", allow_pickle=True, tell=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "delta"}


@pytest.fixture(scope="module")
def taken_apart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A llava-hf checkpoint and its three parts."""
    folder = tmp_path_factory.mktemp("split")
    whole = make_hf15(folder / "whole", fit="pad")
    split(find_checkpoint(str(whole)), folder / "parts", shard=100_000)
    return whole, folder / "parts"


def test_the_language_half_opens_in_transformers_with_equal_logits(taken_apart: Any) -> None:
    whole, parts = taken_apart
    ids = torch.tensor([[1, 300, 310, 320]])
    with torch.inference_mode():
        expected = LlavaForConditionalGeneration.from_pretrained(whole).eval()(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(parts / "language").eval()(input_ids=ids).logits
    assert torch.equal(found, expected)


def test_the_tower_opens_in_transformers_with_equal_features(taken_apart: Any) -> None:
    whole, parts = taken_apart
    pixels = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        tower = LlavaForConditionalGeneration.from_pretrained(whole).eval().model.vision_tower
        expected = tower(pixels, output_hidden_states=True).hidden_states
        found = CLIPVisionModel.from_pretrained(parts / "tower").eval()(pixels, output_hidden_states=True).hidden_states
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_names_are_those_of_the_hub(taken_apart: Any) -> None:
    _, parts = taken_apart
    language, tower, projector = (tensors_of(parts / part) for part in ("language", "tower", "projector"))
    assert all(name.startswith("model.") or name == "lm_head.weight" for name in language)
    assert all(name.startswith("vision_model.") for name in tower)
    assert set(projector) == {f"model.mm_projector.{at}.{end}" for at in (0, 2) for end in ("weight", "bias")}
    config = json.loads((parts / "language" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert not [name for name in config if name.startswith(("mm_", "image_", "vision_"))]


def test_the_parts_are_one_checkpoint_again(taken_apart: Any) -> None:
    whole, parts = taken_apart
    expected = find_checkpoint(str(whole))
    found = find_checkpoint(str(parts / "language"), tower=str(parts / "tower"), projector=str(parts / "projector"))
    assert found.template == expected.template
    assert found.preprocessing == expected.preprocessing
    assert (found.projector.kind, found.tower.feature_layer) == (expected.projector.kind, expected.tower.feature_layer)
    assert set(open_language(language_recipe(found)).weights) == set(open_language(language_recipe(expected)).weights)


def test_split_then_join_gives_identical_tensors(taken_apart: Any, tmp_path: Path) -> None:
    whole, parts = taken_apart
    join(parts, tmp_path / "joined", shard=100_000)
    for part in ("language", "tower", "projector"):
        expected, found = part_weights(whole, part), part_weights(tmp_path / "joined", part)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    one, two = find_checkpoint(str(whole)), find_checkpoint(str(tmp_path / "joined"))
    assert (one.family, one.template, one.preprocessing) == (two.family, two.template, two.preprocessing)
    ids = torch.tensor([[1, 300, 310]])
    with torch.inference_mode():
        opened = [LlavaForConditionalGeneration.from_pretrained(at).eval() for at in (whole, tmp_path / "joined")]
        assert torch.equal(opened[0](input_ids=ids).logits, opened[1](input_ids=ids).logits)


def test_what_join_has_no_place_for_is_told(taken_apart: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"language is not there"):
        join(tmp_path, tmp_path / "out")
    _, parts = taken_apart
    for name in ("language", "tower", "projector"):
        (tmp_path / name).symlink_to(parts / name)
    (tmp_path / "projector").unlink()
    (tmp_path / "projector").mkdir()
    save_file(
        {"model.mm_projector.weight": torch.zeros(HIDDEN, WIDTH)}, tmp_path / "projector" / "mm_projector.safetensors"
    )
    (tmp_path / "projector" / "config.json").write_text('{"mm_projector_type": "linear"}')
    with pytest.raises(CheckpointError, match=r"linear with .* has no place"):
        join(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("spare", [True, False])
def test_an_original_checkpoint_gets_its_image_token(taken_apart: Any, tmp_path: Path, spare: bool) -> None:
    """``spare``: the embedding table has a row for it already."""
    _, parts = taken_apart
    language = tmp_path / "parts" / "language"
    shutil.copytree(parts, tmp_path / "parts")
    tokenizer = json.loads((language / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] not in ("<image>", "<pad>")
    ]
    (language / "tokenizer.json").write_text(json.dumps(tokenizer))
    first = len(tokenizer["model"]["vocab"])
    tensors = tensors_of(language)
    if not spare:
        for file in [*language.glob("*.safetensors"), language / "model.safetensors.index.json"]:
            file.unlink()
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:first].clone()
        save_file(tensors, language / "model.safetensors")
    join(tmp_path / "parts", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["image_token_index"] == first
    opened = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    table = opened.get_input_embeddings().weight
    rows = len(tensors["model.embed_tokens.weight"])
    assert len(table) == (rows if spare else -(-(first + 1) // 64) * 64)
    assert torch.equal(table[:rows], tensors["model.embed_tokens.weight"])
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("<image>").ids[-1] == first
    pixels = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        seen = opened(input_ids=torch.tensor([[1, *[first] * 16, 300]]), pixel_values=pixels).logits
    assert bool(seen.isfinite().all())


def test_three_places_and_a_linear_projector_are_split_too(tmp_path: Path) -> None:
    places = make_v0(tmp_path / "v0", pickle=True)
    whole = find_checkpoint(str(places.language), tower=str(places.tower), projector=str(places.projector))
    split(whole, tmp_path / "parts", allow_pickle=True)
    assert set(tensors_of(tmp_path / "parts" / "projector")) == {"model.mm_projector.weight", "model.mm_projector.bias"}
    assert not [name for name in tensors_of(tmp_path / "parts" / "tower") if not name.startswith("vision_model.")]
    found = find_checkpoint(
        str(tmp_path / "parts" / "language"),
        tower=str(tmp_path / "parts" / "tower"),
        projector=str(tmp_path / "parts" / "projector"),
    )
    assert (found.family, found.template, found.image_start) == (whole.family, whole.template, whole.image_start)
    assert found.preprocessing == whole.preprocessing


def test_packed_weights_stay_packed(tmp_path: Path, v0: V0) -> None:
    language = shutil.copytree(v0.language, tmp_path / "language")
    tensors = tensors_of(language)
    packed = torch.zeros(HIDDEN // 8, HIDDEN, dtype=torch.int32)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.qweight"] = packed
    save_file(tensors, language / "model.safetensors")
    (language / "quantize_config.json").write_text('{"bits": 4, "group_size": -1}')
    split(find_checkpoint(str(language), tower=str(v0.tower), projector=str(v0.projector)), tmp_path / "parts")
    assert tensors_of(tmp_path / "parts" / "language").keys() == tensors.keys()
    assert (tmp_path / "parts" / "language" / "quantize_config.json").is_file()


def test_from_the_command_line(lineage: Any, tmp_path: Path) -> None:
    base, delta, merged = lineage
    run = CliRunner().invoke
    words = ["convert", "delta", "--base", str(base), "--delta", str(delta), "--out", str(tmp_path / "out")]
    done = run(cli, [*words, "--allow-pickle", "--shard", "20KB"], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"{len(merged)} tensors" in done.output
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    whole = make_hf15(tmp_path / "whole")
    assert (
        run(cli, ["convert", "split", str(whole), "--out", str(tmp_path / "parts")], catch_exceptions=False).exit_code
        == 0
    )
    joined = run(
        cli, ["convert", "join", str(tmp_path / "parts"), "--out", str(tmp_path / "again")], catch_exceptions=False
    )
    assert joined.exit_code == 0
    assert tensors_of(tmp_path / "again").keys() == tensors_of(whole).keys()


@pytest.mark.parametrize("size", ["", "0", "lots", "-5GB"])
def test_a_size_that_is_none(size: str, tmp_path: Path) -> None:
    words = ["convert", "join", str(tmp_path), "--out", str(tmp_path / "x"), "--shard", size]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert "is no size" in done.output


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("name", ["1.6-vicuna", "onevision-tied", "interleave"])
def test_newer_families_are_split_and_see_the_same(tmp_path: Path, drawn: Any, name: str, layout: str) -> None:
    made = family(name)
    whole = (save_hf if layout == "hf" else save_original)(made, tmp_path / "whole")
    if layout == "hf":  # whose videos have a processor of their own
        (whole / "video_preprocessor_config.json").write_text('{"image_mean": 0.25}')
    split(find_checkpoint(str(whole)), tmp_path / "parts")
    with (
        trifocal.load(checkpoint=str(whole)) as one,
        trifocal.load(
            checkpoint=str(tmp_path / "parts" / "language"),
            tower_from=str(tmp_path / "parts" / "tower"),
            projector_from=str(tmp_path / "parts" / "projector"),
        ) as other,
    ):
        assert (other.template, other.checkpoint.preprocessing) == (one.template, one.checkpoint.preprocessing)
        assert other.checkpoint.family == one.checkpoint.family
        for images in ([drawn(1, 300, 91)], [drawn(2, 70, 80), drawn(3, 60, 60)]):
            seen = zip(rows_of(one.gallery.vision, images), rows_of(other.gallery.vision, images), strict=True)
            assert all(torch.equal(first, second) for first, second in seen)


def test_tiles_have_no_place_in_the_joined_layout(tmp_path: Path) -> None:
    split(find_checkpoint(str(save_hf(family("1.6-vicuna"), tmp_path / "whole"))), tmp_path / "parts")
    with pytest.raises(CheckpointError, match="no place in llava-hf"):
        join(tmp_path / "parts", tmp_path / "joined")


@pytest.mark.parametrize("beside", [False, True])
def test_the_template_for_tools_comes_along(tmp_path: Path, beside: bool) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(find_checkpoint("thimble").language.source, whole)
    plain, tools = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}", "{{ tools | length }}"
    if beside:
        (whole / "chat_template.jinja").write_text(plain)
        (whole / TOOLS).parent.mkdir()
        (whole / TOOLS).write_text(tools)
    else:
        settings = json.loads((whole / "tokenizer_config.json").read_text())
        settings["chat_template"] = {"default": plain, "tool_use": tools}
        (whole / "chat_template.jinja").unlink(missing_ok=True)
        (whole / "tokenizer_config.json").write_text(json.dumps(settings))
    split(find_checkpoint(str(whole)), tmp_path / "parts")
    found = own_template(tmp_path / "parts" / "language")
    assert found is not None
    assert (found[0], tool_template(found[1])) == (plain, tools)


@pytest.mark.parametrize("brought", ["none", "a processor's", "plain"])
def test_the_language_half_brings_the_template_of_its_family(tmp_path: Path, brought: str) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(find_checkpoint("thimble").language.source, whole)
    texts = {
        "a processor's": "{% for m in messages %}{% for c in m.content if c['type'] == 'text' %}{{ c.text }}"
        "{% endfor %}{% endfor %}",
        "plain": "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}",
    }
    if brought in texts:
        (whole / "chat_template.json").write_text(json.dumps({"chat_template": texts[brought]}))
    split(find_checkpoint(str(whole)), tmp_path / "parts")
    language = tmp_path / "parts" / "language"
    written = (language / "chat_template.jinja").read_text()
    assert not (language / "chat_template.json").exists()
    assert json.loads((language / "tokenizer_config.json").read_text())["chat_template"] == written
    messages = [{"role": "user", "content": "What?"}]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    tokenizer = AutoTokenizer.from_pretrained(language)
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if brought == "plain":
        assert asked == "[user] What?"
        return
    own = TEMPLATES[find_checkpoint(str(whole)).template]
    assert asked.endswith(f"{own.user_before}What?{own.user_after}{own.answer}")
    assert asked.count(own.system) == 1
    assert "<image>\nWhat?" in tokenizer.apply_chat_template(parts, tokenize=False)
    found = find_checkpoint(
        str(language), tower=str(tmp_path / "parts" / "tower"), projector=str(tmp_path / "parts" / "projector")
    )
    assert found.template == own.name
