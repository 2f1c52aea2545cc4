"""Several hundred texts that tokenizers stumble over: spaces, emoji, code, half characters, look-alikes of tokens."""

from __future__ import annotations

import random

__all__ = ["ODD"]

_SPACES = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
_PLAIN = """
a chat USER: ASSISTANT: [INST] [/INST] Hello hello HELLO Hello, don't DON'T I'm we'll 's 'S x1 12 123 1234 1234567
3.14 1,000,000 0x1F naïve café ÉCOLE école Straße ǅ İstanbul e\u0301 a\u0308o\u0308 שלום مرحبا नमस्ते สวัสดี 日本語
中文字 한국어 ひらがな カタカナ 㐀 𠀀 Ω ½ ² ① Ⅷ ٣٤ 🙂 👍🏽 👩\u200d👩\u200d👧 🇩🇪 \u2581 \u2581word word\u2581 <0x0A>
\\n \\u00e9 def f(x): return {x!r: [1,2]}; // /* #include <stdio.h> a==b a!=b => -> ... ---- ____ ~~~ ``` $100 50% C++
C#
"""
_MARKS = """
<s> </s> <unk> <pad> <s>x x</s> </s></s> <S> <image> <im_start> <im_end> <im_patch> <|im_start|> <|im_end|>
<|endoftext|> <|im_start|>user <start_of_turn> <end_of_turn> <|eot_id|> <bos> <eos> [PAD] <0x41>
"""
_WORDS, _LOOKS = _PLAIN.split(), [*_MARKS.split(), "< s>", "</ s>"]


def _texts() -> list[str]:
    fixed = ["", *_SPACES, *(f"{space}a" for space in _SPACES), *(f"a{space}" for space in _SPACES)]
    fixed += [f"a{space}b" for space in _SPACES] + [" " * count for count in range(2, 9)]
    fixed += ["\n" * count + "x" for count in range(1, 5)] + [" " * count + "x" for count in range(2, 6)]
    fixed += ["\r\n\r\n", "a\r\n\tb", "a \n b", "a\n \n\nb  \n", "\ud83d", "a\udc00b", "\x00", "a\x00b", "\U0010ffff"]
    fixed += _WORDS + _LOOKS + [f" {word}" for word in _LOOKS] + [f"{word} b" for word in _LOOKS]
    chance = random.Random(0)
    made = []
    for _ in range(120):
        row = [chance.choice(_WORDS + _LOOKS) + chance.choice(_SPACES + "    ") for _ in range(chance.randint(2, 7))]
        made.append(chance.choice(("", " ", "  ", "\n")) + "".join(row)[: chance.randint(3, 60)])
    return list(dict.fromkeys(fixed + made))


ODD = _texts()
