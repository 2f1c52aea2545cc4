"""Every ``tokenizer.ggml.pre``, held against llama.cpp's ids on a vocabulary whose merges cross every border.

The data are the first six hexadecimal digits of the SHA-256 of llama.cpp's ids (llama-cpp-python 0.3.36) for each of
`ODD`, as JSON writes them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import gguf_maker as maker
import numpy as np
import pytest
from odd_texts import ODD

from trifocal.engines.tokenizer import FileTokenizer
from trifocal.gguf.container import GgufFile
from trifocal.gguf.tokenizer import tokenizer
from trifocal.tokens.bytelevel import CUTS, PRE, Cut

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "tokens" / "llama_cpp.json").read_text("utf-8"))
EASTERN = r"\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"
ENDING, TAIL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"|\s*[\r\n]+|\s+(?!\S)|\s+"
SIGNS = r"| ?[^\s\p{L}\p{N}]+"
THIRDS = r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|[^\p{N}]+"
LETTERS = r"[\p{L}\p{M}]"


def cased(upper: str, lower: str, ending: str = ENDING, digits: str = r"\p{N}{1,3}") -> str:
    """Words that end where a capital follows a small letter, in llama.cpp's form: only a to z and A to Z have cases."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{upper}*{lower}+{ending}|{start}{upper}+{lower}*{ending}"
    return rf"{words}|{digits}{SIGNS}[\r\n/]*{TAIL}"


# Where ours is the model's own rule and llama.cpp's another form of it: of how many of the texts it makes others, and
# llama.cpp's splits. Those that are not among its own routines it asks of the C++ library, in a text whose spaces
# outside of ASCII are vertical tabs: they are in no range of characters any more.
NAMED = {
    "qwen2": (32, None),  # the same without NFC, which transformers has
    "qwen35": (32, None),
    "gpt-4o": (29, (cased(r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"),)),
    "tekken": (29, (cased(r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]", "", r"\p{N}"),)),
    "granite-embed-multi-97m": (6, (cased(r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]"),)),
    "tiny_aya": (1, (THIRDS, cased(LETTERS, LETTERS))),
    "kimi-k2": (
        24,
        (rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^\p{{Han}}]]+{ENDING}|\p{{N}}{{1,3}}{SIGNS}[\r\n]*{TAIL}",),
    ),
    "afmoe": (19, (THIRDS, *CUTS["afmoe"][1:])),  # the model's rule leaves digits together that a letter follows
    **{
        pre: (texts, tuple(split.replace(EASTERN, rf"[{EASTERN}&&[^\s]]") for split in CUTS[pre]))
        for pre, texts in (("deepseek-coder", 8), ("deepseek-llm", 6))
    },
}
SAME = {"gpt-4o": "llama4 kanana2 talkie minimax-m2", "qwen2": "deepseek-r1-qwen kormo f2llmv2 megrez"}
SAME |= {"tiny_aya": "cohere2moe"}
OWN = {pre: NAMED[name] for name in NAMED for pre in (name, *SAME.get(name, "").split())}


@pytest.mark.parametrize("pre", sorted(PRE))
def test_ids_are_llama_cpps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pre: str) -> None:
    """Where they are not, llama.cpp's form of the rule gives its ids: nothing else is behind it."""
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
    other = differing(pre, file)
    assert len(other) == OWN.get(pre, (0,))[0], other[:3]
    if pre in OWN:
        cut = replace(PRE[pre], composed=False)
        if (splits := OWN[pre][1]) is not None:
            monkeypatch.setitem(cast(dict[str, tuple[str, ...]], CUTS), "llama.cpp's", splits)
            cut = replace(cut, splits="llama.cpp's")
        monkeypatch.setitem(cast(dict[str, Cut], PRE), pre, cut)
        assert differing(pre, file) == []


def differing(pre: str, file: GgufFile) -> list[str]:
    """The texts that have other ids here."""
    ours = FileTokenizer(tokenizer(file))
    row = KNOWN["digests"][KNOWN["same"][pre]]
    assert len(row) == 6 * len(ODD)
    return [text for at, text in enumerate(ODD) if digest(ours, text) != row[6 * at : 6 * at + 6]]


def digest(ours: FileTokenizer, text: str) -> str:
    return hashlib.sha256(json.dumps(ours.encode(text, start=False)).encode()).hexdigest()[:6]
