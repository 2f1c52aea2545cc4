"""Files that may live on the Hugging Face hub: found on this machine first, else fetched with progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trifocal.errors import CheckpointError, UsageError

__all__ = ["CONFIGS", "EVERYTHING", "PICKLES", "WEIGHTS", "is_here", "is_whole", "locate"]

CONFIGS = ("*.json", "*.model", "*.jinja", "*.txt")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLES = ("*.bin", "*.bin.index.json")
EVERYTHING = (*CONFIGS, *WEIGHTS, *PICKLES)
_ADVICE = "check the name and the network, or download it elsewhere and give the folder's path"


def locate(name: str, patterns: Sequence[str]) -> Path:
    """The folder (or file) called ``name``: a path of this machine, or a hub id ``owner/name``.

    Of a hub repository only files that match ``patterns`` are fetched, with a progress bar; what is
    in the local cache is used without asking the hub, so that a second start needs no network.
    ``owner/name/file`` names one file.

    Raises:
        UsageError: no such path, and no name that a repository can have.
        CheckpointError: no such repository here or on the hub.
    """
    path = Path(name).expanduser()
    if name and path.exists():
        return path
    owner, *rest = name.split("/")
    if len(rest) not in (1, 2) or not owner or name.startswith((".", "~")):
        raise UsageError(f"{name!r} is no file or folder here and no hub id (owner/name)")
    repository = f"{owner}/{rest[0]}"
    if len(rest) == 2:
        return _fetched(repository, [rest[1]]) / rest[1]
    return _fetched(repository, patterns)


def is_here(name: str) -> bool:
    """Whether `locate` would find ``name`` on this machine, as far as one file of it tells; the hub is not asked."""
    if Path(name).expanduser().exists():
        return True
    from huggingface_hub import try_to_load_from_cache

    owner, *rest = name.split("/")
    if len(rest) not in (1, 2):
        return False
    try:
        return isinstance(try_to_load_from_cache(f"{owner}/{rest[0]}", rest[1] if rest[1:] else "config.json"), str)
    except ValueError:  # of which the library's HFValidationError is one, in every version and wherever it lies
        return False


def is_whole(name: str) -> bool:
    """Whether a folder or a hub repository is on this machine with its weights; the hub is not asked."""
    if Path(name).expanduser().exists():
        return True
    owner, *rest = name.split("/")
    if len(rest) not in (1, 2) or not owner or name.startswith((".", "~")):
        return True  # no hub id: whoever looks for it says what is wrong
    for wanted in ((*CONFIGS, *WEIGHTS), EVERYTHING):
        folder = _local(f"{owner}/{rest[0]}", list(wanted))
        if folder and _usable(folder, wanted):
            return True
    return False


def _fetched(repository: str, patterns: Sequence[str]) -> Path:
    """The snapshot's folder: this machine's, else the hub's; pickles only where there are no other weights."""
    lean = [pattern for pattern in patterns if pattern not in PICKLES]
    choices = [lean] if lean == list(patterns) else [lean, list(patterns)]
    for wanted in choices:
        local = _local(repository, wanted)
        if local and _usable(local, wanted):
            return local
    for wanted in choices:
        folder = _download(repository, wanted)
        if _usable(folder, wanted):
            return folder
    raise CheckpointError(
        f"{repository}: what is needed of it ({', '.join(patterns)}) is not whole on this machine and could not be "
        f"fetched; {_ADVICE}"
    )


def _local(repository: str, patterns: list[str]) -> Path | None:
    """The snapshot on this machine, or None where none was fetched.

    The library of 2023 says that none is there by a plain FileNotFoundError or ValueError, today's by a class that is
    both, and a name that is none by a ValueError too: so the name is looked at first.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise UsageError(f"{repository!r} is no file or folder here and no hub id ({error})") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError):
        return None


def _download(repository: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # of whichever client this version of the library speaks through
        raise CheckpointError(
            f"{repository} is not on this machine and could not be fetched from the hub; {_ADVICE}"
        ) from error


def _usable(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a fetch of these patterns was not cut off: weights are there, all that an index names among them.

    Files appear in the cache whole or not at all.
    """
    weights = [pattern for pattern in patterns if pattern not in CONFIGS]
    indexes = [index for pattern in weights if pattern.endswith(".index.json") for index in folder.glob(pattern)]
    if indexes:
        return any(all((folder / shard).is_file() for shard in _shards(index)) for index in indexes)
    return any(any(folder.glob(pattern)) for pattern in weights or patterns)


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text("utf-8-sig"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: this is no index of weights") from error
