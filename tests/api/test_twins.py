"""Twins: a server with one guard taken away, at which the very test that stands for the guard must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_doors as doors
from live import Live
from test_doors import locked  # noqa: F401  # a fixture

from trifocal.api import guard

GONE: tuple[type[BaseException], ...] = (AssertionError, pytest.fail.Exception)
Told = Callable[[Live, Live], object]
TWINS: dict[str, tuple[Any, str, Any, Told]] = {
    "nobody asks for a key": (
        guard.AccessCheck,
        "_check_key",
        lambda self, scope: scope.update({"trifocal.caller": "-"}),
        lambda live, shut: doors.test_no_route_answers_without_the_key(shut, "GET", "/v1/models", {}),
    ),
    "any host name will do": (
        guard.AccessCheck,
        "_check_host",
        lambda self, scope: None,
        lambda live, shut: doors.test_only_known_host_names_are_answered(shut, "evil.example"),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_its_twin_is_found(name: str, live: Live, locked: Live, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    owner, what, broken, told = TWINS[name]
    told(live, locked)
    monkeypatch.setattr(owner, what, broken)
    with pytest.raises(GONE):
        told(live, locked)
