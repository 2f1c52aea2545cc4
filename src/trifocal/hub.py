"""Files that may live on the Hugging Face hub: found on this machine first, else fetched with progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trifocal.errors import CheckpointError

__all__ = ["CONFIGS", "PICKLES", "WEIGHTS", "is_here", "locate"]

CONFIGS = ("*.json", "*.model", "*.jinja", "*.txt")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
PICKLES = ("*.bin", "*.bin.index.json")


def locate(name: str, patterns: Sequence[str]) -> Path:
    """The folder (or file) called ``name``: a path of this machine, or a hub id ``owner/name``.

    Of a hub repository only files that match ``patterns`` are fetched, with a progress bar; what is
    in the local cache is used without asking the hub, so that a second start needs no network.
    ``owner/name/file`` names one file.

    Raises:
        CheckpointError: no such path, and no such repository here or on the hub.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    owner, *rest = name.split("/")
    if len(rest) not in (1, 2) or not owner or name.startswith((".", "~")):
        raise CheckpointError(f"{name!r} is no file or folder here and no hub id (owner/name)")
    repository = f"{owner}/{rest[0]}"
    if len(rest) == 2:
        return _fetched(repository, [rest[1]]) / rest[1]
    return _fetched(repository, patterns)


def is_here(name: str) -> bool:
    """Whether `locate` would find ``name`` on this machine, as far as one file of it tells; the hub is not asked."""
    if Path(name).expanduser().exists():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    owner, *rest = name.split("/")
    if len(rest) not in (1, 2):
        return False
    try:
        return isinstance(try_to_load_from_cache(f"{owner}/{rest[0]}", rest[1] if rest[1:] else "config.json"), str)
    except HFValidationError:
        return False


def _fetched(repository: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        local = Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True))
        if _complete(local, patterns):
            return local
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository} is not on this machine and could not be fetched from the hub ({type(error).__name__}); "
            "check the name and the network, or download it elsewhere and give the folder's path"
        ) from error


def _complete(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether an earlier fetch of these patterns left something for the last of them."""
    return any(any(folder.glob(pattern)) for pattern in patterns)
