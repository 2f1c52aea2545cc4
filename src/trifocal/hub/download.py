"""One file of the hub into its cache on this machine: gone on with where it broke off, checked before it counts."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trifocal.errors import CheckpointError

__all__ = ["Progress", "Remote", "digest_of", "fetch"]

Progress = Callable[[int], None]  # bytes of the file that are there
TRIES = 5
PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of a repository at a commit: its bytes, and its digest: SHA-256, or for small files git's SHA-1."""

    repository: str
    commit: str
    name: str
    size: int
    digest: str


def fetch(remote: Remote, *, verify: bool = True, tell: Progress | None = None) -> tuple[Path, bool]:
    """The file's place in the cache, laid out as the hub's own library does it, and whether it was fetched just now.

    With ``verify`` a file that is here already is held against its digest too, and taken away if it is another's.

    Raises:
        CheckpointError: bytes that don't have the digest that the hub promised, or a name that is none.
        Exception: whatever the hub's library raises when the hub can't be reached or breaks off too often.
    """
    from huggingface_hub import constants

    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", remote.digest) or os.path.basename(remote.name) != remote.name:
        raise CheckpointError(
            f"{remote.repository}: {remote.name!r} with the digest {remote.digest!r} is no file of a hub"
        )
    home = Path(constants.HF_HUB_CACHE) / f"models--{remote.repository.replace('/', '--')}"
    blob = home / "blobs" / remote.digest
    there = home / "snapshots" / remote.commit / remote.name
    whole = there if there.exists() else blob
    new = not whole.is_file()
    if new:
        _download(remote, blob, tell or (lambda _: None))
    elif verify:
        _check(remote, whole)
    _link(blob, there)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(remote.commit)
    return there, new


def digest_of(file: Path, digits: int) -> str:
    """SHA-256 of a file; with 40 digits the SHA-1 that git knows it by."""
    digest = hashlib.sha256() if digits == 64 else hashlib.sha1(usedforsecurity=False)
    if digits == 40:
        digest.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _check(remote: Remote, file: Path) -> None:
    found = digest_of(file, len(remote.digest))
    if found != remote.digest:
        file.resolve().unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        raise CheckpointError(
            f"{remote.repository}/{remote.name}: its digest is {found}, the hub promised {remote.digest}; "
            "it was taken away: pull again"
        )


def _download(remote: Remote, blob: Path, tell: Progress) -> None:
    """Gets the bytes into a file beside the blob, which stays when they break off, and then into place."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    with WeakFileLock(part.with_suffix(".lock")):
        for attempt in range(TRIES):
            try:
                _go_on(remote, part, tell)
            except CheckpointError:
                raise
            except Exception:  # of whichever client the hub's library uses
                if attempt == TRIES - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
                continue
            break
        _check(remote, part)
        os.replace(part, blob)
    part.with_suffix(".lock").unlink(missing_ok=True)


def _go_on(remote: Remote, part: Path, tell: Progress) -> None:
    """Asks for the bytes that are not there yet and writes them down as they come."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    part.touch()
    have = part.stat().st_size
    if have > remote.size:
        have = 0
    if have == remote.size:
        return
    headers = {**build_hf_headers(), "accept-encoding": "identity"}
    if have:
        headers["range"] = f"bytes={have}-"
    url = hf_hub_url(remote.repository, remote.name, revision=remote.commit)
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as answer:
        answer.raise_for_status()
        have = have if answer.status_code == 206 else 0
        with part.open("r+b") as opened:
            opened.truncate(have)
            opened.seek(have)
            for piece in answer.iter_bytes(PIECE):
                opened.write(piece)
                have += len(piece)
                if have > remote.size:
                    break
                tell(have)
    if have != remote.size:
        raise OSError(f"{have} of {remote.size} bytes came")


def _link(blob: Path, there: Path) -> None:
    """The file's name in its snapshot."""
    if there.exists():
        return
    there.parent.mkdir(parents=True, exist_ok=True)
    there.unlink(missing_ok=True)
    try:
        there.symlink_to(os.path.relpath(blob, there.parent))
    except OSError:  # a file system without links
        shutil.copyfile(blob, there)
