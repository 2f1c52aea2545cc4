"""How much memory and time converting and loading take, by the size: random weights in the shape of a 13B.

    python benchmarks/converting.py --layers 2 4 8 --folder /tmp/converting

Each runs in a process of its own. ``grown`` is its highest resident memory less what it was after the imports, and,
of ``load`` onto the CPU, less the model that is there in the end (``--device`` puts it elsewhere); ``anonymous`` leaves
out pages of mapped files, which the system takes back when it needs them. ``lora`` is a split that adds a LoRA of rank
128 to every linear layer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HIDDEN, INNER, ROWS, WIDTH = 5120, 13824, 32000, 1024
SHARD = 10 << 30
KINDS = ["delta", "split", "lora", "load"]


def shapes(layers: int, rows: int, *, projector: str = "") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LLaMA 13B of so many blocks; with a ``linear`` or ``mlp`` projector, of a LLaVA."""
    made: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        made |= {f"{at}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        made |= {f"{at}mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        made |= {f"{at}mlp.down_proj.weight": (HIDDEN, INNER)}
        made |= {f"{at}{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    made |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (rows, HIDDEN)}
    if projector == "linear":
        made |= {"model.mm_projector.weight": (HIDDEN, WIDTH), "model.mm_projector.bias": (HIDDEN,)}
    if projector == "mlp":
        made |= {"model.mm_projector.0.weight": (HIDDEN, WIDTH), "model.mm_projector.2.weight": (HIDDEN, HIDDEN)}
        made |= {f"model.mm_projector.{at}.bias": (HIDDEN,) for at in (0, 2)}
    return made


def write(folder: Path, tensors: dict[str, tuple[int, ...]], config: dict[str, object]) -> None:
    """safetensors shards of at most `SHARD` bytes, every one full of the same small random numbers."""
    import numpy as np

    folder.mkdir(parents=True)
    pattern = (np.random.default_rng(0).normal(size=32 << 20) / 100).astype(np.float16).tobytes()
    places: dict[str, str] = {}
    for number, names in enumerate(grouped(tensors)):
        file = f"model-{number:05d}.safetensors"
        header, at = {}, 0
        for name in names:
            size = 2 * int(np.prod(tensors[name]))
            header[name] = {"dtype": "F16", "shape": tensors[name], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            for left in range(at, 0, -len(pattern)):
                opened.write(pattern[:left])
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(config))


def grouped(tensors: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Names by shard."""
    import numpy as np

    held, names = 0, []
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        if held + size > SHARD:
            yield names
            held, names = 0, []
        held += size
        names.append(name)
    yield names


def config(layers: int, rows: int, **more: object) -> dict[str, object]:
    return {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 40,
        "max_position_embeddings": 2048,
        "vocab_size": rows,
        **more,
    }


def lora(folder: Path, base: Path, layers: int, settings: dict[str, object], rank: int = 128) -> None:
    """A LoRA of LLaVA's over that base, with the projector beside it."""
    linears = {name: shape for name, shape in shapes(layers, ROWS).items() if "_proj." in name}
    changes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in ((name, shape[:2]) for name, shape in linears.items()):
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        changes |= {f"{stem}A.weight": (rank, inputs), f"{stem}B.weight": (outputs, rank)}
    trained = {name: shape for name, shape in shapes(0, ROWS, projector="mlp").items() if "mm_projector" in name}
    write(folder, {f"base_model.model.{name}": shape for name, shape in trained.items()}, settings)
    (folder / "model-00000.safetensors").rename(folder / "non_lora_trainables.safetensors")
    write(folder / "changes", changes, {})
    (folder / "changes" / "model-00000.safetensors").rename(folder / "adapter_model.safetensors")
    shutil.rmtree(folder / "changes")
    (folder / "model.safetensors.index.json").unlink()
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(about))


def tower(folder: Path) -> None:
    """CLIP-L's tower, 336."""
    block = {"self_attn.q_proj": 1, "self_attn.k_proj": 1, "self_attn.v_proj": 1, "self_attn.out_proj": 1}
    made: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1024,),
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (577, 1024),
    }
    for layer in range(24):
        at = f"vision_model.encoder.layers.{layer}."
        made |= {f"{at}{name}.weight": (1024, 1024) for name in block}
        made |= {f"{at}mlp.fc1.weight": (4096, 1024), f"{at}mlp.fc2.weight": (1024, 4096)}
    write(folder, made, {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14})


def measured(what: str, *words: str) -> dict[str, float]:
    """Runs one conversion in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--one", what, *words], check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout), "seconds": round(time.perf_counter() - started, 1)}


def one(what: str, words: list[str]) -> None:
    """The conversion, in this process, watched by a thread."""
    import torch

    from trifocal.checkpoints import find_checkpoint
    from trifocal.tools import convert

    torch.set_num_threads(1)
    paths = [Path(word) for word in words[:3]]
    before, peak, over = resident(), {"VmRSS": 0, "RssAnon": 0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for name, value in resident().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if what == "delta":
        convert.apply_delta(paths[0], paths[1], paths[2])
    elif what in ("split", "lora"):
        convert.split(find_checkpoint(words[0], tower=words[1]), paths[2])
    elif what == "load":
        from trifocal.checkpoints import language_recipe
        from trifocal.engines import load_engine
        from trifocal.placement import Placement

        checkpoint = find_checkpoint(words[0], tower=words[1])
        engine = load_engine(language_recipe(checkpoint, Placement(words[3], "float16"), engine="transformers"))
    over.set()
    watcher.join()
    size = sum(file.stat().st_size for file in paths[2].rglob("*.safetensors"))
    if what == "load":
        size = sum(tensor.nbytes for tensor in engine.model.state_dict().values())  # type: ignore[attr-defined]
        if words[3] == "cpu":
            peak = {name: value - size for name, value in peak.items()}
    grown = {name: (peak[name] - before[name]) / 1e6 for name in peak}
    print(json.dumps({"GB": size / 1e9, "grown": round(grown["VmRSS"]), "anonymous": round(grown["RssAnon"])}))


def resident() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0] in ("VmRSS:", "RssAnon:")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/converting"))
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--device", default="cpu", help="where the loaded language model goes")
    parser.add_argument("--one", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], given.one[1:])
        return
    columns = ("conversion", "blocks", "result, GB", "memory grown, MB", "of it anonymous, MB", "seconds")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for layers in given.layers:
        for what in [given.only] if given.only else KINDS:
            here = given.folder / str(os.getpid())
            if what == "delta":
                write(here / "a", shapes(layers, ROWS), config(layers, ROWS))
                write(here / "b", shapes(layers, ROWS + 3, projector="linear"), config(layers, ROWS + 3))
            else:
                mm = {"mm_projector_type": "mlp2x_gelu", "mm_hidden_size": WIDTH}
                write(here / "a", shapes(layers, ROWS, projector="mlp"), config(layers, ROWS, **mm))
                for file in ("tokenizer.json", "tokenizer_config.json"):
                    shutil.copy(Path(__file__).parent.parent / "src" / "trifocal" / "thimble" / file, here / "a")
                tower(here / "b")
                if what == "lora":
                    (here / "a").rename(here / "base")
                    lora(here / "a", here / "base", layers, config(layers, ROWS, **mm))
            found = measured(what, str(here / "a"), str(here / "b"), str(here / "out"), given.device)
            row = (f"{found['GB']:.1f}", *(f"{found[name]:.0f}" for name in ("grown", "anonymous", "seconds")))
            print(f"| {what} | {layers} | {' | '.join(row)} |", flush=True)
            shutil.rmtree(here)


if __name__ == "__main__":
    main()
