"""The command line in processes of its own, as a shell meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from checkpoint_maker import V0

__all__ = ["echoing", "environment", "trifocal"]


def environment(**values: str) -> dict[str, str]:
    """This environment without settings of its own, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIFOCAL_")}
    return {**kept, "COLUMNS": "200", "TRIFOCAL_LOG": "no", **values}


def echoing(v0: V0) -> dict[str, str]:
    """The settings with which every command talks to the engine echo."""
    return {
        "TRIFOCAL_CHECKPOINT": str(v0.language),
        "TRIFOCAL_TOWER_FROM": str(v0.tower),
        "TRIFOCAL_PROJECTOR_FROM": str(v0.projector),
        "TRIFOCAL_ENGINE": "echo",
        "TRIFOCAL_TEMPLATE": "plain",
    }


def trifocal(
    *words: str | bytes,
    stdin: bytes = b"",
    folder: Path | None = None,
    python: tuple[str, ...] = (),
    **values: str,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command to its end; whatever happens, nobody ever sees a traceback."""
    done = subprocess.run(
        [sys.executable, *python, "-m", "trifocal", *words],
        input=stdin,
        capture_output=True,
        cwd=folder,
        env=environment(**values),
        timeout=300,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done
