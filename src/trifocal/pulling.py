"""What a checkpoint needs of the hub, fetched and checked; and what of it is on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from trifocal.checkpoints import KNOWN, Source
from trifocal.errors import CheckpointError, UsageError
from trifocal.hub import CONFIGS, PICKLES, WEIGHTS
from trifocal.weights import canonical

__all__ = ["Held", "Pulled", "Wanted", "held", "pull", "wanted"]

Tell = Callable[[str], None]
Part = Literal["tower", "projector", "language"]
PARTS: tuple[Part, ...] = ("tower", "projector", "language")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of a repository: its size in bytes, and the digest by which the hub knows it.

    ``sha256`` is that of large files; ``blob`` is git's sha1 of the others.
    """

    repository: str
    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True, slots=True)
class Pulled:
    """A file that is here and is what the hub says it is."""

    wanted: Wanted
    path: Path


@dataclass(frozen=True, slots=True)
class Held:
    """A repository in the hub's cache on this machine: bytes on disk, and which files of its index are missing."""

    repository: str
    folder: Path
    nbytes: int
    missing: tuple[str, ...]


def wanted(name: str, *, part: Part | None = None, allow_pickle: bool = False) -> list[Wanted]:
    """The files of a checkpoint's three parts on the hub; of ``part`` alone where one is named.

    Raises:
        UsageError: a name that is no hub id.
        CheckpointError: the hub can't be reached, or has no such repository or nothing that may be read.
    """
    known = KNOWN.get(name, Source(language=name))
    places = {"language": known.language, "tower": known.tower, "projector": known.projector}
    found: dict[tuple[str, str], Wanted] = {}
    for each in PARTS if part is None else (part,):
        place = places[each] or known.language
        alone = part if place == known.language else None
        for file in _of_place(place, alone, allow_pickle):
            found[file.repository, file.name] = file
    return list(found.values())


def pull(files: Sequence[Wanted], *, verify: bool = True, tell: Tell | None = None) -> list[Pulled]:
    """Fetches what is not here yet, going on where a fetch was cut off, and checks every file's digest.

    A file whose bytes are wrong is taken off this machine, so that the next try fetches it anew. ``tell`` is told
    each file's name before it is fetched.

    Raises:
        CheckpointError: the hub can't be reached, or bytes that are not those it promised.
    """
    from huggingface_hub import hf_hub_download

    done = []
    for file in files:
        if tell:
            tell(file.name)
        try:
            path = Path(hf_hub_download(file.repository, file.name))
        except Exception as error:
            raise _unreachable(file.repository, error) from error
        if verify:
            _check(file, path)
        done.append(Pulled(file, path))
    return done


def held() -> list[Held]:
    """The repositories in the hub's cache that have a configuration, by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repo in sorted(repos, key=lambda each: each.repo_id):
        if repo.repo_type != "model" or not repo.revisions:
            continue
        newest = max(repo.revisions, key=lambda revision: revision.last_modified)
        folder = Path(newest.snapshot_path)
        found.append(Held(repo.repo_id, folder, repo.size_on_disk, tuple(_absent(folder))))
    return found


def _of_place(place: str, part: Part | None, allow_pickle: bool) -> list[Wanted]:
    owner, *rest = place.split("/")
    if len(rest) not in (1, 2) or not owner or place.startswith((".", "~", "/")):
        raise UsageError(f"{place!r} is no hub id (owner/name); a folder of this machine needs no pulling")
    repository = f"{owner}/{rest[0]}"
    files = _listed(repository)
    if len(rest) == 2:
        files = [file for file in files if file.name == rest[1]]
        if not files:
            raise CheckpointError(f"{repository} has no file {rest[1]}")
        _refuse_pickles([file for file in files if _is(file, PICKLES)], allow_pickle)
        return files
    configs = [file for file in files if _is(file, CONFIGS)]
    weights = [file for file in files if _is(file, WEIGHTS) and not file.name.endswith(".json")]
    if not weights:
        weights = [file for file in files if _is(file, PICKLES) and not file.name.endswith(".json")]
        _refuse_pickles(weights, allow_pickle)
    if not weights:
        raise CheckpointError(f"{repository} has no weights (*.safetensors, *.bin)")
    return [*configs, *_shards_of(repository, configs, weights, part)]


def _shards_of(repository: str, configs: list[Wanted], weights: list[Wanted], part: Part | None) -> list[Wanted]:
    """Of the weights those with tensors of a part, where an index tells."""
    index = next((file for file in configs if file.name.endswith(".index.json")), None)
    if part is None or index is None:
        return weights
    (pulled,) = pull([index])
    try:
        places = json.loads(pulled.path.read_text("utf-8"))["weight_map"]
        needed = {file for name, file in places.items() if (found := canonical(name)) and found[0] == part}
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{pulled.path}: this is no index of weights") from error
    return [file for file in weights if file.name in needed]


def _listed(repository: str) -> list[Wanted]:
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().model_info(repository, files_metadata=True).siblings or []
    except Exception as error:
        raise _unreachable(repository, error) from error
    return [
        Wanted(repository, each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None, each.blob_id)
        for each in siblings
        if "/" not in each.rfilename
    ]


def _unreachable(repository: str, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    reason = f"could not be fetched from the hub ({type(error).__name__})"
    if isinstance(error, GatedRepoError):
        reason = "asks for its licence to be accepted on the hub first; then set HF_TOKEN"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "is not on the hub, or is private: check the name, or set HF_TOKEN"
    return CheckpointError(f"{repository} {reason}; what was fetched stays, and the next try goes on from there")


def _refuse_pickles(files: list[Wanted], allow_pickle: bool) -> None:
    if files and not allow_pickle:
        raise UsageError(
            f"{files[0].repository} has its weights in pickles ({files[0].name}); say --allow-pickle to fetch them "
            "(no code in them is ever run)"
        )


def _is(file: Wanted, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def _check(file: Wanted, path: Path) -> None:
    """Holds a file against the digest that the hub gave for it."""
    if file.sha256:
        digest, promised = hashlib.sha256(), file.sha256
    elif file.blob:
        digest, promised = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False), file.blob
    else:
        return
    with path.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != promised:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: its digest is {digest.hexdigest()}, the hub promised {promised}; it was taken away: pull again"
        )


def _absent(folder: Path) -> Iterator[str]:
    """The files that a folder's index names and that are not there."""
    for index in folder.glob("*.index.json"):
        try:
            places: Any = json.loads(index.read_text("utf-8"))["weight_map"]
            yield from sorted({name for name in places.values() if not (folder / name).is_file()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            yield f"{index.name} (damaged)"
