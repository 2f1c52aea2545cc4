from __future__ import annotations

import json

import pytest
import torch

import trifocal
from trifocal.engines.grammar import Grammars
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import BadSampling

WIDTH = 5000


@pytest.fixture(scope="module")
def tokenizer() -> FileTokenizer:
    from trifocal.checkpoints import find_checkpoint

    return FileTokenizer(find_checkpoint("thimble").language.source)


@pytest.fixture(scope="module")
def grammars(tokenizer: FileTokenizer) -> Grammars:
    return Grammars(tokenizer.definition, WIDTH, frozenset({2}))


def test_random_logits_give_what_the_schema_allows(grammars: Grammars, tokenizer: FileTokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    random = torch.Generator().manual_seed(1)
    for _ in range(5):
        constraint, ids = grammars.constraint(json.dumps(schema)), []
        while not ids or ids[-1] != 2:
            scores = constraint.allowed(torch.randn(WIDTH, generator=random))
            ids.append(int(scores.argmax()))
            constraint.accept(ids[-1])
            assert len(ids) < 40
        assert json.loads(tokenizer.decode(ids[:-1])) in ({"a": True}, {"a": False})


@pytest.mark.parametrize("schema", ["{", '{"type": "strin"}', '{"propertyNames": {"minLength": 1}}', "5"])
def test_what_can_not_be_held_is_refused(grammars: Grammars, schema: str) -> None:
    with pytest.raises(BadSampling, match="schema"):
        grammars.constraint(schema)


def test_echo_refuses_a_schema() -> None:
    from trifocal.engines.echo import Echo
    from trifocal.prompt import Prompt, TokenSpan

    with pytest.raises(BadSampling, match="echo"):
        Echo().stream(Prompt([TokenSpan((20,))]), trifocal.Sampling(schema="{}"))
