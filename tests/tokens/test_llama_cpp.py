"""Every ``tokenizer.ggml.pre``, held against llama.cpp's ids on a vocabulary whose merges cross every border.

The data are the first six hexadecimal digits of the SHA-256 of llama.cpp's ids (llama-cpp-python 0.3.36) for each of
`ODD`, as JSON writes them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf_maker as maker
import numpy as np
import pytest
from odd_texts import ODD

from trifocal.engines.tokenizer import FileTokenizer
from trifocal.gguf.container import GgufFile
from trifocal.gguf.tokenizer import tokenizer
from trifocal.tokens.bytelevel import PRE

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "tokens" / "llama_cpp.json").read_text("utf-8"))
# where ours is the model's own rule and llama.cpp's another form of it: how many of the texts differ by that
OWN = {
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "tekken"), 29),
    **dict.fromkeys(("qwen2", "qwen35", "deepseek-r1-qwen", "f2llmv2", "kormo", "megrez"), 32),  # NFC, as transformers
    "kimi-k2": 24,
    "granite-embed-multi-97m": 6,
    "tiny_aya": 1,
    "cohere2moe": 1,
    "afmoe": 19,
    "deepseek-coder": 8,
    "deepseek-llm": 6,
}


@pytest.mark.parametrize("pre", sorted(PRE))
def test_ids_are_llama_cpps(tmp_path: Path, pre: str) -> None:
    if pre not in KNOWN["same"]:
        pytest.fail(f"llama.cpp's ids for {pre} are not among the data")
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": KNOWN["tokens"],
        "tokenizer.ggml.merges": KNOWN["merges"],
    }
    file = GgufFile(maker.write(tmp_path / "t.gguf", metadata, {"t": (np.zeros((1, 4)), "F32")}))
    ours = FileTokenizer(tokenizer(file))
    row = KNOWN["digests"][KNOWN["same"][pre]]
    assert len(row) == 6 * len(ODD)
    other = [text for at, text in enumerate(ODD) if digest(ours, text) != row[6 * at : 6 * at + 6]]
    assert len(other) == OWN.get(pre, 0), other[:3]


def digest(ours: FileTokenizer, text: str) -> str:
    return hashlib.sha256(json.dumps(ours.encode(text, start=False)).encode()).hexdigest()[:6]
