"""Byte-level tokenizers: how each family cuts text into words before it merges, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["CLASSES", "CUTS", "PRE", "Cut", "byte_level"]

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANK = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD, _SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+"
_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_SIGNS}|\s+(?!\S)|\s+"
_WORDS = rf"{_ENDINGS}|{_WORD}|%s|{_SIGNS}[\r\n]*|{_BLANK}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(digits: str, ending: str = "", most: str = "", end: str = r"[\r\n/]*") -> str:
    """Words that end where a capital follows a small letter; ``most`` narrows the letters."""
    start = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = f"[{_UPPER}{most}]", f"[{_LOWER}{most}]"
    words = f"{start}{upper}*{lower}+{ending}|{start}{upper}+{lower}*{ending}"
    return rf"{words}|{digits}|{_SIGNS}{end}|{_BLANK}"


_THREE = r"\p{N}{1,3}"
_GPT_4O = _cased(_THREE, f"{_ENDINGS}?")
_EACH_THIRD = r"\d{1,3}(?=(?:\d{3})*\b)"
_CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_MARKED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
_MARKED_WORDS = rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANK}"
_EASTERN = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_SOUTH_EASTERN = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    r"\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_CASED_LETTERS = (
    r"A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    r"\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    r"\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    r"\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    r"\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    r"\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    r"\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    r"\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    r"\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    r"\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_KOREAN_AND_MORE = (
    r"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    r"\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_LONG_BLANKS = "|".join(rf"\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))


def _exact(pattern: str) -> str:
    r"""The pattern with the characters that ``\u`` and ``\U`` stand for, which the library's own syntax has not."""
    coded = r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})|\\x([0-9a-f]{2})"
    return re.sub(coded, lambda found: chr(int("".join(filter(None, found.groups())), 16)), pattern)


# name: the splits, one after the other, as the families' own tokenizer.json files have them
CUTS: Mapping[str, tuple[str, ...]] = {
    "gpt2": (_GPT2,),
    "digits+gpt2": (r"\p{N}", _GPT2),
    "llama3": (_WORDS % _THREE,),
    "qwen2": (_WORDS % r"\p{N}",),
    "qwen35": (
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANK}",
    ),
    "tekken": (_cased(r"\p{N}"),),
    "gpt4o": (_GPT_4O,),
    "deepseek-v3": (_THREE, _CJK, _MARKED_WORDS),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_CASED_LETTERS}]+",
        r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _EASTERN,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EASTERN, r"\p{N}"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    # what llama.cpp does where a file does not tell, and no family's own
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "tiny-aya": (_EACH_THIRD, _GPT_4O),
    "kimi-k2": (r"\p{Han}+|" + _cased(_THREE, f"{_ENDINGS}?", r"&&[^\p{Han}]", r"[\r\n]*"),),
    "seed-coder": (rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANK}",),
    "bailingmoe": (
        rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}|{_SIGNS}+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    "minicpm5": (_THREE, _WORDS % r"\p{N}+"),
    "exaone-moe": (
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|{_SIGNS}[\r\n/]?"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    "bloom": (_BLOOM,),
    "viking": (_BLOOM, r"\p{N}"),
    "chameleon": (
        r"<sentinel:[0-9]+>",
        r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ),
    "youtu": (_KOREAN_AND_MORE, _cased(r"\p{N}", f"{_ENDINGS}?")),
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "jais2": (rf"{_ENDINGS}|{_WORD}|{_THREE}|{_SIGNS}[\r\n]*|\s*[\r\n]+|{_LONG_BLANKS}|\s{{1}}",),
    "laguna": (r"[^\n]+|[\n]+", _WORDS % r"\p{N}"),
    "ufakzeka": (rf"{_WORD}|\p{{N}}|{_SIGNS}[\r\n]*|{_BLANK}",),
    "spark2_5": (_THREE, _CJK, rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"),
    "afmoe": (_EACH_THIRD, _SOUTH_EASTERN, _MARKED_WORDS),
}


@dataclass(frozen=True, slots=True)
class Cut:
    """One family's byte-level tokenizer: a row of `CUTS` and what else it does.

    ``whole`` takes a word that is a token as it is, without merging (``ignore_merges``); ``begins`` puts the beginning
    token in front where the file does not say; ``composed`` writes letters and their marks as one (NFC) first.
    """

    splits: str
    whole: bool = False
    begins: bool = False
    composed: bool = False


def _table() -> dict[str, Cut]:
    rows = (
        (Cut("llama3", whole=True, begins=True), "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2"),
        (Cut("llama3", whole=True, begins=True), "jina-v5-nano"),
        (Cut("qwen2", composed=True), "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez"),
        (Cut("qwen2"), "stablelm2 hunyuan solar-open grok-2"),
        (Cut("gpt2"), "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo"),
        (Cut("gpt2"), "jais trillion granite-docling exaone4 jina-v1-en jina-v2-code roberta-bpe"),
        (Cut("digits+gpt2"), "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"),
        (Cut("llama3"), "dbrx smaug-bpe chatglm-bpe"),
        (Cut("llama3", whole=True), "glm4 glm5"),
        (Cut("gpt4o"), "gpt-4o llama4 kanana2 talkie minimax-m2"),
        (Cut("deepseek-v3"), "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
        (Cut("tiny-aya"), "tiny_aya cohere2moe"),
        (Cut("bailingmoe"), "bailingmoe bailingmoe2 llada-moe"),
        (Cut("bloom"), "bloom gpt3-finnish poro-chat"),
        (Cut("qwen35", composed=True), "qwen35"),
        (Cut("tekken", whole=True, begins=True), "tekken"),
        (Cut("gpt4o", whole=True), "granite-embed-multi-97m"),
        (Cut("minicpm5", whole=True), "minicpm5"),
        (Cut("chameleon", begins=True), "chameleon"),
        (Cut("youtu", whole=True), "youtu"),
        (Cut("jais2"), "jais-2"),
    )
    table = {name: cut for cut, names in rows for name in names.split()}
    alike = "deepseek-llm deepseek-coder falcon default kimi-k2 seed-coder exaone-moe viking superbpe laguna ufakzeka"
    return table | {name: Cut(name) for name in f"{alike} spark2_5 afmoe".split()}


PRE: Mapping[str, Cut] = _table()
"""What ``tokenizer.ggml.pre`` of a GGUF file stands for."""

CLASSES: Mapping[str, Cut] = {
    "Qwen2Tokenizer": PRE["qwen2"],
    "GPT2Tokenizer": PRE["gpt-2"],
    "CodeGenTokenizer": PRE["gpt-2"],
    "GPTNeoXTokenizer": Cut("gpt2", composed=True),
    "RobertaTokenizer": PRE["gpt-2"],
    "BartTokenizer": PRE["gpt-2"],
    "LlamaTokenizer": PRE["llama-bpe"],
    "CohereTokenizer": Cut("digits+gpt2", composed=True),
}
"""What the slow tokenizers of ``vocab.json`` and ``merges.txt`` do, by their ``tokenizer_class``."""


def byte_level(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], cut: Cut) -> Backend:
    """The tokenizer of a vocabulary and its merges, without any named token."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    built = Tokenizer(models.BPE(vocabulary, list(merges), ignore_merges=cut.whole))
    if cut.composed:
        built.normalizer = normalizers.NFC()
    splits: list[Any] = [
        pre_tokenizers.Split(Regex(_exact(pattern)), behavior="isolated") for pattern in CUTS[cut.splits]
    ]
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte])
    built.decoder = decoders.ByteLevel()
    return built
