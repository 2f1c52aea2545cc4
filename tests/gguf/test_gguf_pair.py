"""A pair of GGUF files is a checkpoint like any other: found, loaded, and answering as the model it was made of."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import gguf_maker as maker
import mmproj_maker as eyes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from checkpoint_maker import llama_tokenizer
from logits import logits_of
from seeing import count, prompt_of, rows_of
from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines.language import open_language
from trifocal.engines.transformers import load
from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile
from trifocal.gguf.language import GgufLanguage
from trifocal.gguf.mmproj import Mmproj
from trifocal.gguf.tokenizer import tokenizer
from trifocal.messages import Sampling
from trifocal.model.llava import load as load_llava
from trifocal.placement import Placement
from trifocal.prompt import Prompt, TokenSpan
from trifocal.vision import load_vision
from trifocal.weights.tensors import part_weights

CPU = Placement("cpu", "float32")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], Tokenizer]:
    """A folder with the two files, the language model's tensors, and its tokenizer."""
    folder = tmp_path_factory.mktemp("pair")
    tensors, pieces = eyes.make_pair(folder)
    return folder, tensors, pieces


def test_the_folder_is_a_checkpoint(pair: Any) -> None:
    checkpoint = find_checkpoint(str(pair[0]))
    assert (checkpoint.family, checkpoint.template, checkpoint.projector.kind) == ("llava-1.5", "llava_v1", "mlp2x")
    assert checkpoint.preprocessing.fit == "pad"
    assert checkpoint.preprocessing.mean == (0.5, 0.25, 0.75)
    assert checkpoint.tower.blocks == eyes.BLOCKS - 1
    named = find_checkpoint(str(pair[0] / "tiny-f16.gguf"), projector=str(pair[0] / "mmproj-tiny-f16.gguf"))
    assert named.language == checkpoint.language
    assert named.tower == checkpoint.tower


@torch.inference_mode()
def test_it_answers_as_the_model_it_was_made_of(pair: Any) -> None:
    folder, tensors, pieces = pair
    engine = load(language_recipe(find_checkpoint(str(folder))), CPU)
    config = LlamaConfig(
        hidden_size=maker.HIDDEN,
        intermediate_size=maker.INNER,
        num_hidden_layers=maker.LAYERS,
        num_attention_heads=maker.HEADS,
        num_key_value_heads=maker.KEYS,
        rms_norm_eps=1e-5,
        vocab_size=pieces.get_vocab_size(),
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(tensors)
    text = "USER: What is shown in this image?"
    ids = engine.tokenizer.encode(text, start=True)
    assert ids == pieces.encode(text).ids
    assert engine.tokenizer.decode(ids) == text
    steps = [token.id for token in engine.stream(Prompt((TokenSpan(tuple(ids)),)), Sampling(max_tokens=5))]
    expected = torch.tensor([ids])
    for _ in range(5):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], 1)
    assert steps == expected[0, len(ids) :].tolist()[: len(steps)]
    assert steps


def test_it_sees_as_the_tower_it_was_made_of(pair: Any, drawn: Any) -> None:
    checkpoint = find_checkpoint(str(pair[0]))
    vision = load_vision(checkpoint, CPU, CPU)
    rows = rows_of(vision, [drawn(0)])[0]
    assert rows.shape == (4, maker.HIDDEN)
    assert bool(rows.isfinite().all())
    tower = part_weights(checkpoint.tower.source, "tower")
    whole = eyes.state(eyes.model())
    assert all(torch.equal(tower[name].float(), whole[name]) for name in tower)


@torch.inference_mode()
def test_a_pair_of_1_6_sees_in_tiles(pair: Any, tmp_path: Path, drawn: Any) -> None:
    folder, _, _ = pair
    shutil.copy(folder / "tiny-f16.gguf", tmp_path)
    sight = eyes.stored(eyes.state(eyes.model()), eyes.BLOCKS - 1, swapped=True)
    newline = np.random.default_rng(2).normal(size=maker.HIDDEN)
    sight["model.image_newline"] = (newline, "F32")
    tiles = {
        "clip.vision.image_grid_pinpoints": [28, 56, 56, 28, 56, 56, 84, 28, 28, 84],
        "clip.vision.image_aspect_ratio": "anyres",
        "clip.vision.mm_patch_merge_type": "spatial_unpad",
    }
    for name, shape in {"mm.0": (maker.HIDDEN, eyes.WIDTH), "mm.2": (maker.HIDDEN, maker.HIDDEN)}.items():
        sight[f"{name}.weight"] = (np.random.default_rng(1).normal(size=shape), "F16")
        sight[f"{name}.bias"] = (np.random.default_rng(2).normal(size=shape[0]), "F32")
    maker.write(tmp_path / "mmproj-tiny-f16.gguf", {**eyes.METADATA, **tiles}, sight)
    checkpoint = find_checkpoint(str(tmp_path))
    assert (checkpoint.family, checkpoint.template) == ("llava-1.6", "llava_v1")
    vision = load_vision(checkpoint, CPU, CPU)
    picture = drawn(1, 84, 28)
    (rows,) = rows_of(vision, [picture])
    assert len(rows) == count(vision, picture) == 4 + 2 * 7
    ends = rows[4:].view(2, 7, -1)[:, -1]
    torch.testing.assert_close(ends, torch.from_numpy(newline).float().expand(2, -1), atol=1e-6, rtol=0)
    tower = eyes.model()
    squares = [drawn(1, 84, 28).pixels.resize((28, 28), 3)]
    squares += [picture.pixels.crop((left, 0, left + 28, 28)) for left in (0, 28, 56)]
    values = torch.stack([torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1) / 255 for square in squares])
    mean, std = (torch.tensor(eyes.METADATA[f"clip.vision.image_{name}"])[:, None, None] for name in ("mean", "std"))
    patches = tower((values - mean) / std, output_hidden_states=True).hidden_states[eyes.BLOCKS - 1][:, 1:]
    linear = [torch.from_numpy(sight[name][0]).half().float() for name in ("mm.0.weight", "mm.2.weight")]
    bias = [torch.from_numpy(sight[name][0]).float() for name in ("mm.0.bias", "mm.2.bias")]
    whole = F.linear(F.gelu(F.linear(patches, linear[0], bias[0])), linear[1], bias[1])
    torch.testing.assert_close(rows[:4], whole[0], atol=1e-4, rtol=1e-4)
    grid = whole[1:].view(3, 2, 2, -1).permute(1, 0, 2, 3).reshape(2, 6, -1)
    torch.testing.assert_close(rows[4:].view(2, 7, -1)[:, :-1], grid, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"clip.vision.image_mean": "x"}, "image_mean is 'x', three numbers"),
        ({"clip.vision.image_mean": ["a", "b", "c"]}, "image_mean is 'a', a number"),
        ({"clip.vision.image_std": [0.0, 1.0, 1.0]}, "image_std is 0.0, a number above 0"),
        ({"clip.vision.image_aspect_ratio": "square"}, ""),
    ],
)
def test_how_pictures_are_shown_is_read_or_told(pair: Any, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    shutil.copy(pair[0] / "tiny-f16.gguf", tmp_path)
    sight = eyes.stored(eyes.state(eyes.model()), eyes.BLOCKS - 1, swapped=True)
    maker.write(tmp_path / "mmproj-tiny-f16.gguf", {**eyes.METADATA, **change}, sight)
    if told:
        with pytest.raises(CheckpointError, match=told):
            find_checkpoint(str(tmp_path))
    else:
        assert find_checkpoint(str(tmp_path)).preprocessing.fit == "crop"


def test_a_file_that_is_missing_or_one_too_many_is_told(pair: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one GGUF mmproj file is wanted, here is none"):
        find_checkpoint(str(pair[0] / "tiny-f16.gguf"))
    for name in ("a.gguf", "b.gguf", "mmproj.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"one GGUF language model is wanted, here is a\.gguf, b\.gguf"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize("projector", [False, True])
def test_a_pair_is_known_by_what_its_files_say_where_their_names_tell_nothing(
    pair: Any, tmp_path: Path, projector: bool
) -> None:
    shutil.copy(pair[0] / "tiny-f16.gguf", tmp_path / "a.gguf")
    sight = shutil.copy(pair[0] / "mmproj-tiny-f16.gguf", tmp_path / "b.gguf")
    found = find_checkpoint(str(tmp_path), projector=str(sight) if projector else None)
    assert (found.language.source.name, found.tower.source.name) == ("a.gguf", "b.gguf")


def test_a_later_part_is_told_to_be_one(tmp_path: Path) -> None:
    (part := tmp_path / "m-00002-of-00003.gguf").touch()
    with pytest.raises(CheckpointError, match="is a later part of a model in several files; name its first"):
        find_checkpoint(str(part))


def test_types_and_shapes_are_known_without_reading(pair: Any) -> None:
    weights = part_weights(pair[0] / "tiny-f16.gguf", "language")
    for name in weights:
        tensor = weights[name]
        kind = {"F16": torch.float16, "F32": torch.float32}[weights.spec(name)[0]]
        assert (kind, weights.spec(name)[1]) == (tensor.dtype, tuple(tensor.shape))
        assert weights.where(name).name == "tiny-f16.gguf"


def test_a_whole_answer_about_a_picture(pair: Any, drawn: Any) -> None:
    values = {"checkpoint": str(pair[0]), "tower": CPU, "projector": CPU, "language": CPU}
    with load_llava(**values) as llava:
        question = llava.question("What is shown in this image?", [drawn(0)])
        reply = llava.complete([question], Sampling(max_tokens=4))
    assert reply.end.image_tokens == 4
    assert reply.end.completion_tokens <= 4


def test_the_language_half_of_one_and_the_sight_of_another(pair: Any, hf15: Path) -> None:
    checkpoint = find_checkpoint(str(hf15), language=str(pair[0] / "tiny-f16.gguf"))
    assert checkpoint.language.hidden == maker.HIDDEN
    assert checkpoint.tower.source == hf15
    assert set(open_language(language_recipe(checkpoint)).weights) == set(pair[1])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_byte_gives_anything_but_a_checkpoint_error(pair: Any, data: st.DataObject) -> None:
    """Either the file still makes sense, or it is refused: nothing else comes out of a damaged head."""
    name = data.draw(st.sampled_from(["tiny-f16.gguf", "mmproj-tiny-f16.gguf"]))
    whole = bytearray((pair[0] / name).read_bytes())
    head = 12_000 if name.startswith("tiny") else 5_000
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, head))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / name
        damaged.write_bytes(whole)
        told = complaint(damaged)
    assert told is None or str(damaged) in told


def complaint(path: Path) -> str | None:
    """What the file is refused with."""
    try:
        if path.name.startswith("tiny"):
            GgufLanguage(GgufFile(path))
            tokenizer(GgufFile(path))
        else:
            Mmproj(GgufFile(path))
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("layers", [[0, 2, 4], [4, 1]])
def test_granites_pair_sees_with_several_layers_and_scales_its_rows(
    tmp_path: Path, drawn: Any, layers: list[int]
) -> None:
    """SigLIP's features of several layers, side by side as they are listed, and Granite's four multipliers."""
    pieces = llama_tokenizer([])
    tensors = maker.language_tensors(pieces.get_vocab_size(), tied=True)
    scales = {"embedding_scale": 12.0, "residual_scale": 0.22, "attention.scale": 0.1, "logit_scale": 8.0}
    metadata = {f"granite.{name}": value for name, value in scales.items()}
    metadata |= {name.replace("llama.", "granite."): value for name, value in maker.LANGUAGE.items()}
    metadata |= {**maker.tables(pieces), "general.architecture": "granite"}
    maker.write(tmp_path / "tiny-f16.gguf", metadata, maker.stored(tensors, "F16"))
    tower = eyes.siglip()
    sight = eyes.stored(eyes.state(tower), eyes.BLOCKS, swapped=True)
    for name, width in {"mm.0": len(layers) * eyes.WIDTH, "mm.2": maker.HIDDEN}.items():
        random = np.random.default_rng(1)
        sight[f"{name}.weight"] = (random.normal(size=(maker.HIDDEN, width)) / 64, "F16")
        sight[f"{name}.bias"] = (random.normal(size=maker.HIDDEN), "F32")
    told = {**eyes.METADATA, "clip.vision.feature_layer": layers, "clip.vision.block_count": eyes.BLOCKS}
    maker.write(tmp_path / "mmproj-tiny-f16.gguf", {**told, "clip.vision.attention.layer_norm_epsilon": 1e-6}, sight)

    picture = drawn(1, 28, 28)
    with load_llava(checkpoint=str(tmp_path), tower=CPU, projector=CPU, language=CPU) as llava, torch.no_grad():
        prompt = prompt_of(llava.composer, (picture, "What?"))
        ours = logits_of(llava.engine, prompt)
        values = torch.from_numpy(np.array(picture.pixels)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(eyes.METADATA[f"clip.vision.image_{key}"])[:, None, None] for key in ("mean", "std"))
        states = tower(((values - mean) / std)[None], output_hidden_states=True).hidden_states
        features = torch.cat([states[at] for at in layers], -1)[0]
        linear = [torch.from_numpy(sight[name][0]).half().float() for name in ("mm.0.weight", "mm.2.weight")]
        bias = [torch.from_numpy(sight[name][0]).float() for name in ("mm.0.bias", "mm.2.bias")]
        rows = F.linear(F.gelu(F.linear(features, linear[0], bias[0])), linear[1], bias[1])
        (seen,) = rows_of(llava.gallery.vision, [picture])
        torch.testing.assert_close(seen, rows, atol=1e-4, rtol=1e-4)
        model = granite(pieces.get_vocab_size())
        model.load_state_dict({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
        wanted = model(inputs_embeds=prompt.splice(model.get_input_embeddings())[None]).logits[0]
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


def granite(vocabulary: int) -> GraniteForCausalLM:
    """As `maker.LANGUAGE` and four multipliers configure it."""
    return GraniteForCausalLM(
        GraniteConfig(
            hidden_size=maker.HIDDEN,
            intermediate_size=maker.INNER,
            num_hidden_layers=maker.LAYERS,
            num_attention_heads=maker.HEADS,
            num_key_value_heads=maker.KEYS,
            rms_norm_eps=1e-5,
            vocab_size=vocabulary,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.1,
            logits_scaling=8.0,
            tie_word_embeddings=True,
        )
    ).eval()
