"""Schemathesis over the OpenAPI document: no server error, no undocumented status, every answer is got (T-13)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, settings
from live import HIDDEN, Live, Watching, data_uri, full, make_llava, running
from requests import Session
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from trifocal.api.app import create_app
from trifocal.api.serving import Server
from trifocal.api.settings import ServerSettings
from trifocal.web import routes
from waiting import PATIENCE

EXAMPLES = full(500, 10)  # of each operation
AS_DRAWN = 8  # the first of so many keeps the names that were drawn: nothing is there that has one of them
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
PICTURES = {name: data_uri() for name in ("image", "image_url", "url", "file_data", "data")}
PICTURES["images"] = data_uri().partition(",")[2]
ITEM = "msg_red"  # one that the kept response answers

app = create_app(make_llava(), ServerSettings(), routes())
app.state.server.close()
# the document's operations by their labels, without the document: who only collects need not write it
ROUTES = {
    f"{method} {route.path_format}": route
    for route in app.routes
    if isinstance(route, APIRoute) and route.include_in_schema
    for method in sorted(route.methods)
}


@pytest.fixture(scope="module")
def schema() -> Any:
    """The document as schemathesis reads it."""
    read = schemathesis.openapi.from_dict(app.openapi())
    read.config.max_stream_events = 1 << 20  # of 20 events it would be cut short
    return read


@pytest.fixture(scope="module")
def operations(schema: Any) -> dict[str, Any]:
    return {made.ok().label: made.ok() for made in schema.get_all_operations()}


@pytest.fixture(scope="module")
def short() -> Iterator[Live]:
    """A server whose answers are short: it echoes what was asked, and its template has no system text."""
    with running(make_llava(Watching(hidden=HIDDEN), "plain"), routes(), slots=4) as server:
        yield server


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """One connection for all that is asked: besides what is generated there are 5,500 requests at the borders."""
    with Session() as made:
        made.trust_env = False
        yield made


def test_the_labels_are_those_of_the_document(operations: dict[str, Any]) -> None:
    assert ROUTES.keys() == operations.keys()


def fields_of(label: str) -> set[tuple[str, str]]:
    """What an operation's body is read by; all of them are as strict about names that are none of its fields."""
    if (body := ROUTES[label].body_field) is None:
        return set()
    model = body.field_info.annotation
    return {(name, repr(field)) for name, field in model.model_fields.items()} | {("", repr(model.model_config))}


def refused_elsewhere(label: str) -> bool:
    """Whether an operation before this one reads all fields of its body, and was sent all that they must refuse."""
    before = list(ROUTES)[: list(ROUTES).index(label)]
    return any(fields_of(label) <= fields_of(other) for other in before if fields_of(label))


def test_only_who_reads_what_others_read_is_not_sent_it() -> None:
    assert [label for label in ROUTES if refused_elsewhere(label)] == [
        "POST /v1/responses/input_tokens",
        "POST /api/v1/token-count",
        "POST /v1/messages/count_tokens",
        "POST /api/pull",
        "POST /v1/internal/token-count",
        "POST /detokenize",
    ]


@pytest.mark.parametrize("label", ROUTES)
def test_every_operation_answers_as_documented(
    label: str, short: Live, session: Session, schema: Any, operations: dict[str, Any]
) -> None:
    """Its cases are built here, not by whoever only collects; `schema.parametrize` gives all items one node's id.

    Of items with one id xdist runs a single one.
    """

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answers(case: schemathesis.Case) -> None:
        # the same each time that it is asked, or a failure would be called flaky
        if asked.setdefault(repr((case.path_parameters, case.query, case.body)), len(asked)) % AS_DRAWN:
            names_what_is_there(case, short, session)
        statuses.append(held_to_the_document(case, short, session))

    asked: dict[str, int] = {}
    statuses: list[int] = []
    config = copy.deepcopy(schema.config)
    if refused_elsewhere(label) and not full(1, 0):
        config.generation.update(modes=[GenerationMode.POSITIVE])
    build_operation_test(
        config=config,
        operation=operations[label],
        test_func=answers,
        given_kwargs={},
        feedback=FeedbackSources(),
    )()
    assert statuses
    answerable = "200" in operations[label].definition.raw["responses"]
    assert (200 in statuses) == answerable, f"no case comes past the refusals: {Counter(statuses)}"


def names_what_is_there(case: schemathesis.Case, live: Live, session: Session) -> None:
    """Has a case name the served model, a kept response, a picture where it names one: no drawn text is any of them."""
    model, body = live.llava.checkpoint.name, case.body if isinstance(case.body, dict) else {}
    response = kept(live, session) if "id" in case.path_parameters or "previous_response_id" in body else ""
    case.path_parameters = filled(case.path_parameters, {"name": model, "id": response})
    case.query = filled(case.query, {"model": model, "after": ITEM, "before": ITEM})
    case.body = filled(case.body, {"model": model, "template": "plain", "previous_response_id": response, **PICTURES})
    # what is explained is an answer, and no drawn conversation ends with one
    if case.operation.path == "/page/api/explain" and isinstance(body.get("messages"), list):
        case.body["messages"].append({"role": "assistant", "content": "red"})


def filled(drawn: Any, there: dict[str, str], under: str = "") -> Any:
    """What was drawn, with the texts under these names replaced; what is no text, where there should be one, stays."""
    match drawn:
        case str():
            return there.get(under, drawn)
        case list():
            return [filled(each, there, under) for each in drawn]
        case dict():
            return {name: filled(value, there, name) for name, value in drawn.items()}
    return drawn


def kept(live: Live, session: Session) -> str:
    """The id of a response that the server keeps."""
    items = [{"type": "message", "id": id, "role": "user", "content": "red"} for id in ("msg_first", ITEM, "msg_last")]
    response = session.post(f"{live.url}/v1/responses", json={"input": items}, timeout=PATIENCE)
    response.raise_for_status()
    told: str = response.json()["id"]
    return told


def held_to_the_document(case: schemathesis.Case, live: Live, session: Session) -> int:
    """One request, and what it was answered with: all of it, or a stream that hangs would pass as one cut short."""
    response = case.call(base_url=live.url, session=session, timeout=PATIENCE)
    assert not response.stream_cut_short
    case.validate_response(response, checks=list(CHECKS))
    return response.status_code


def test_its_twin_that_fails_is_found(
    short: Live, session: Session, schema: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = schema["/v1/models"]["GET"].Case()
    held_to_the_document(asked, short, session)
    monkeypatch.setattr(Server, "names", property(lambda server: 1 / 0))
    with pytest.raises(FailureGroup):
        held_to_the_document(asked, short, session)


def test_its_twin_that_names_nothing_that_is_there_is_found(
    short: Live, session: Session, schema: Any, operations: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "names_what_is_there", lambda case, live, session: None)
    with pytest.raises(AssertionError, match="no case comes past the refusals"):
        test_every_operation_answers_as_documented("GET /v1/models/{name}", short, session, schema, operations)
