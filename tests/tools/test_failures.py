"""How a failed test speaks."""

from __future__ import annotations

import pytest


def test_what_differs_is_told_in_short() -> None:
    """On a CI server too, where pytest would explain how each byte of a picture became another's."""
    left, right = list(range(900)), list(range(1, 901))
    with pytest.raises(AssertionError) as failed:
        assert left == right
    assert len(str(failed.value)) < 4000
