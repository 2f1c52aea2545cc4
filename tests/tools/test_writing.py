"""Where a result may be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trifocal.errors import UsageError
from trifocal.tools.writing import check_place


def test_what_is_written_once_may_go_to_a_pipe_and_what_is_read_back_may_not(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_place(pipe, "--json", "bench.json", once=True)
    with pytest.raises(UsageError, match="a device or a pipe"):
        check_place(pipe, "--out", "captions.jsonl")
    check_place(tmp_path / "new.json", "--out", "captions.jsonl")
