"""What keeps a prompt's beginning from being found again in vLLM by those who are not to find it."""

from __future__ import annotations

import uuid

__all__ = ["salt"]


def salt(scope: str | None) -> dict[str, str]:
    """A scope in vLLM's own words. None is one that nobody else has, the empty one is everybody's."""
    told = uuid.uuid4().hex if scope is None else scope
    return {"cache_salt": told} if told else {}
