from __future__ import annotations

import json

import pytest
import torch

import trifocal
from trifocal.engines import schemas
from trifocal.engines.base import Token
from trifocal.engines.grammar import Constraint, Grammars
from trifocal.engines.sampler import Drawing, pick
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import BadSampling, EngineError
from trifocal.messages import Sampling
from trifocal.tokens.folder import read_words

WIDTH = 5000


@pytest.fixture(scope="module")
def tokenizer() -> FileTokenizer:
    from trifocal.checkpoints import find_checkpoint

    return FileTokenizer(read_words(find_checkpoint("thimble").language.source))


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


BAD = {"type": "string", "not": {"const": "x"}}
PLACES = {
    "properties.a": {"type": "object", "properties": {"b": {"type": "string"}, "a": BAD}},
    "properties.a.items.anyOf[1]": {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"anyOf": [{"type": "string"}, BAD]}}},
    },
    "$defs.Name": {"type": "object", "properties": {"a": {"$ref": "#/$defs/Name"}}, "$defs": {"Name": BAD}},
}


@pytest.mark.parametrize("place", PLACES)
def test_what_can_not_be_held_is_refused_with_its_place(grammars: Grammars, place: str) -> None:
    with pytest.raises(BadSampling, match="can't be held") as refused:
        grammars.constraint(json.dumps(PLACES[place]))
    told = str(refused.value)
    assert place in told or (place.startswith("$defs") and "properties.a: " in told)


def allows(grammars: Grammars, tokenizer: FileTokenizer, schema: object, text: str) -> bool:
    """Whether an answer that is held to the schema may be this text, and end there."""
    constraint = grammars.constraint(json.dumps(schema))
    for token in [*tokenizer.encode(text, start=False), 2]:
        if constraint.allowed(torch.zeros(WIDTH))[token] != 0:
            return False
        constraint.accept(token)
    return True


LISTED = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
PART = {"type": "object", "properties": {"b": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "more"),
    [
        (LISTED, False),
        ({**LISTED, "additionalProperties": True}, True),
        ({"type": "object"}, True),
        ({"$ref": "#/$defs/A", "$defs": {"A": LISTED}}, False),
        ({"allOf": [LISTED]}, False),
        ({"allOf": [LISTED, PART]}, True),
        ({"allOf": [{"$ref": "#/$defs/A"}, PART], "$defs": {"A": LISTED}}, True),
        ({"anyOf": [LISTED, {"type": "null"}]}, False),
    ],
)
def test_objects_that_list_their_properties_have_no_others(
    grammars: Grammars, tokenizer: FileTokenizer, schema: dict[str, object], more: bool
) -> None:
    assert allows(grammars, tokenizer, schema, '{"a":1}')
    assert allows(grammars, tokenizer, schema, '{"a":1,"b":2}') == more


def properties(count: int) -> dict[str, object]:
    return {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(count)}}


def nested(depth: int) -> dict[str, object]:
    return {"type": "object", "properties": {"a": nested(depth - 1)}} if depth else {"type": "string"}


OVER = {
    "44,000 properties": (properties(44_000), "bytes"),
    "1,000 properties": (properties(1000), "1000 properties"),
    "16,000 in one list": ({"enum": [0] * 16_000}, "16000 members"),
    "deep": (nested(40), "deeper than 32"),
    "a long pattern": ({"type": "string", "pattern": "a" * 300}, "longer than 256"),
    "a long name": ({"type": "object", "patternProperties": {"a" * 300: {}}}, "longer than 256"),
    "definitions": ({"$defs": {f"d{at}": {} for at in range(501)}}, "501 properties and definitions"),
}


@pytest.mark.parametrize("name", OVER)
def test_a_schema_over_the_limits_never_reaches_the_library(
    name: str, grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "_tried", None)  # whoever calls it fails
    schema, reason = OVER[name]
    with pytest.raises(BadSampling, match=reason):
        grammars.constraint(json.dumps(schema))


def test_a_crash_of_the_library_is_a_refusal(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the limits the library overflows its stack, in a process that nobody needs."""
    schemas.checked.cache_clear()
    monkeypatch.setattr(schemas, "_bounded", lambda schema: "")
    with pytest.raises(BadSampling, match="can't be held: compiling it") as caught:
        grammars.constraint(json.dumps({"type": "object", "properties": {f"p{at}": {} for at in range(44_000)}}))
    assert "panic" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_is_within_the_limits_is_held_and_compiled_aside_once(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    aside = schemas._tried
    monkeypatch.setattr(schemas, "_tried", lambda schema: tried.append(schema) or aside(schema))
    for schema in (properties(499), nested(10), {"enum": [f"value {at}" for at in range(999)]}):
        for _ in range(2):
            grammars.constraint(json.dumps(schema))
    assert len(tried) == 3


def test_what_was_tried_for_one_scope_is_tried_again_for_another(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(schemas, "_tried", lambda schema: tried.append(schema) or "")
    for scope in ("key a", "key a", "key b", "key b", None, None):
        grammars.constraint('{"type": "object", "properties": {"only here": {}}}', scope)
    assert len(tried) == 4


def test_echo_refuses_a_schema() -> None:
    from trifocal.engines.echo import Echo
    from trifocal.prompt import Prompt, TokenSpan

    with pytest.raises(BadSampling, match="echo"):
        Echo().stream(Prompt([TokenSpan((20,))]), trifocal.Sampling(schema="{}"))


@pytest.mark.parametrize("limit", ["max_items_in_row", "step_lexer_fuel", "step_max_items", "max_lexer_states"])
def test_a_schema_that_can_not_be_held_any_further_is_the_schemas_fault(grammars: Grammars, limit: str) -> None:
    from llguidance import LLMatcher, LLParserLimits

    schema = properties(40) | {"patternProperties": {"^(a|b)*c{3,9}$": {"type": "string", "pattern": "(x|y)*z{3,9}"}}}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    constraint = Constraint(LLMatcher(grammars._tokenizer, grammar, log_level=0, limits=LLParserLimits(**{limit: 3})))

    def go_on() -> None:
        for _ in range(20):
            constraint.accept(int(constraint.allowed(torch.zeros(WIDTH)).argmax()))

    with pytest.raises(BadSampling, match=r"can't be held any further: .*(too many|items)") as refused:
        go_on()
    assert "state>" not in str(refused.value)


def test_an_id_that_was_not_allowed_is_no_fault_of_the_schema(grammars: Grammars) -> None:
    with pytest.raises(EngineError, match="left the schema"):
        grammars.constraint('{"type": "boolean"}').accept(70)


def test_a_library_that_fails_on_one_answer_ends_no_other(grammars: Grammars) -> None:
    class Failing:
        def compute_bitmask(self) -> bytes:
            raise ValueError("a lexer of its own kind")

    rows = [Drawing(Sampling()), Drawing(Sampling())]
    rows[1].constraint = Constraint(Failing())
    one, other = pick(torch.eye(2, WIDTH), rows)
    assert isinstance(one, Token)
    assert isinstance(other, BadSampling)
    assert str(other) == "schema: the JSON schema can't be held any further: a lexer of its own kind"
