"""What a checkpoint needs of the hub, fetched and checked; and what of it is on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Literal

from trifocal.checkpoints import KNOWN, Release
from trifocal.errors import CheckpointError, UsageError
from trifocal.hub.download import Remote, fetch
from trifocal.hub.locate import CONFIGS, PICKLES, WEIGHTS, is_whole
from trifocal.weights.lora import ADAPTER, base_of
from trifocal.weights.names import canonical
from trifocal.weights.tensors import stored_names

__all__ = ["PARTS", "Downloaded", "Part", "Pulled", "Wanted", "downloaded", "pull", "remove", "wanted"]

Tell = Callable[[str, int], None]  # a file, and how many of its bytes are there
Part = Literal["tower", "projector", "language"]
PARTS: tuple[Part, ...] = ("tower", "projector", "language")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of a repository at a commit: its size in bytes, and the digest by which the hub knows it.

    ``sha256`` is that of large files; ``blob`` is git's sha1 of the others.
    """

    repository: str
    commit: str
    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True, slots=True)
class Pulled:
    """A file that is here and is what the hub says it is, and whether it was fetched just now."""

    wanted: Wanted
    path: Path
    new: bool


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A repository in the hub's cache, or a folder: its bytes, the parts that it holds, and what is missing of it.

    Missing are files that its index names, and what it needs from elsewhere and this machine does not have.
    """

    repository: str
    folder: Path
    nbytes: int
    parts: tuple[Part, ...]
    missing: tuple[str, ...]


def wanted(name: str, *, part: Part | None = None, allow_pickle: bool = False) -> list[Wanted]:
    """The files of a checkpoint's three parts on the hub; of ``part`` alone where one is named.

    The tower that an original checkpoint names comes along, and so does the base of a LoRA.

    Raises:
        UsageError: a name that is no hub id.
        CheckpointError: the hub can't be reached, or has no such repository or nothing that may be read.
    """
    known = KNOWN.get(name, Release(language=name))
    places = {"language": known.language, "tower": known.tower, "projector": known.projector}
    found: dict[tuple[str, str], Wanted] = {}
    for each in PARTS if part is None else (part,):
        place = places[each] or known.language
        alone = part if place == known.language else None
        named = None if places["tower"] or each != "tower" else _tower_named_by(place)
        for file in _of_place(named, None, allow_pickle) if named else _of_place(place, alone, allow_pickle):
            found[file.repository, file.name] = file
        base = _base_named_by(place) if each == "language" else None
        for file in _of_place(base, None, allow_pickle) if base else ():
            found[file.repository, file.name] = file
    return list(found.values())


def pull(files: Sequence[Wanted], *, verify: bool = True, tell: Tell | None = None) -> list[Pulled]:
    """Fetches what is not here yet, going on where a fetch was cut off; what comes is held against its digest.

    With ``verify`` what is here already is, too. A file whose bytes are wrong is taken off this machine, so that the
    next try fetches it anew. ``tell`` is told how far each file is.

    Raises:
        CheckpointError: the hub can't be reached, or bytes that are not those it promised.
    """
    done = []
    for file in files:
        remote = Remote(file.repository, file.commit, file.name, file.size, file.sha256 or file.blob or "")
        progress = partial(tell, file.name) if tell else None
        try:
            path, new = fetch(remote, verify=verify, tell=progress)
        except CheckpointError:
            raise
        except Exception as error:
            raise _unreachable(file.repository, error) from error
        done.append(Pulled(file, path, new))
    return done


def downloaded(folders: Iterable[Path] = ()) -> list[Downloaded]:
    """The repositories in the hub's cache by name, then the checkpoints in ``folders`` and right below them."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = sorted(scan_cache_dir().repos, key=lambda each: each.repo_id)
    except CacheNotFound:
        repos = []
    found = []
    for repo in repos:
        if repo.repo_type != "model" or not repo.revisions:
            continue
        newest = max(repo.revisions, key=lambda revision: revision.last_modified)
        found.append(_downloaded(repo.repo_id, Path(newest.snapshot_path)))
    for folder in folders:
        below = sorted(child for child in folder.iterdir() if child.is_dir())
        found += [_downloaded(place.name, place) for place in (folder, *below) if _holds_a_model(place)]
    return found


def remove(repository: str) -> int:
    """Takes a repository out of the hub's cache, all of its commits; how many bytes that freed.

    Raises:
        UsageError: it is not in the cache.
    """
    from huggingface_hub import scan_cache_dir

    for repo in scan_cache_dir().repos if _cache_is_there() else ():
        if repo.repo_type == "model" and repo.repo_id == repository:
            shutil.rmtree(repo.repo_path)
            return int(repo.size_on_disk)
    raise UsageError(f"{repository!r} is not in the hub's cache; trifocal list says what is")


def _cache_is_there() -> bool:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).is_dir()


def _downloaded(name: str, folder: Path) -> Downloaded:
    nbytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    missing, parts = list(_absent(folder)), set[str]()
    if not missing:
        try:
            parts = _parts_in(folder)
            missing = [] if parts else ["its weights"]
            missing += [place for place in _needed(name, folder, parts) if not is_whole(place)]
        except CheckpointError as error:
            missing = [str(error)]
    return Downloaded(name, folder, nbytes, tuple(part for part in PARTS if part in parts), tuple(missing))


def _holds_a_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf")) or any(folder.glob("mm_projector.*"))


def _parts_in(folder: Path) -> set[str]:
    """The parts whose tensors lie in a folder."""
    parts = {found[0] for found in map(canonical, stored_names(folder)) if found}
    parts |= {"projector"} if any(folder.glob("mm_projector.*")) else set()
    for file in folder.glob("*.gguf"):
        parts |= {"tower", "projector"} if "mmproj" in file.name.lower() else {"language"}
    return parts


def _needed(name: str, folder: Path, parts: set[str]) -> list[str]:
    """The hub ids that a checkpoint names for what it does not hold itself."""
    known = KNOWN.get(name)
    config = _json(folder / "config.json")
    named = [known.tower, known.projector] if known else []
    if "tower" not in parts and "vision_config" not in config and isinstance(config.get("mm_vision_tower"), str):
        named.append(config["mm_vision_tower"])
    if (folder / ADAPTER).is_file() and "language" not in parts:
        named.append(base_of(folder))
    return list(dict.fromkeys(place for place in named if place))


def _tower_named_by(place: str) -> str | None:
    """The tower that an original checkpoint on the hub names and does not hold; its configuration alone is fetched."""
    files = _small(place, "config.json", "*.index.json")
    named = files.pop("config.json", {}).get("mm_vision_tower")
    tensors = [name for index in files.values() for name in index.get("weight_map", {})]
    inside = any(found[0] == "tower" for found in map(canonical, tensors) if found)
    return named if isinstance(named, str) and named.count("/") == 1 and not inside else None


def _base_named_by(place: str) -> str | None:
    """The base of a LoRA on the hub; None where it is none, or its base is a folder."""
    named = _small(place, ADAPTER).get(ADAPTER, {}).get("base_model_name_or_path")
    return named if isinstance(named, str) and named.count("/") == 1 and not Path(named).exists() else None


def _small(place: str, *patterns: str) -> dict[str, dict[str, Any]]:
    """JSON files of a repository by their names, fetched; none where the place is one file of it."""
    repository, alone = _hub_id(place)
    files = [] if alone else [file for file in _listed(repository) if _is(file, patterns)]
    return {each.wanted.name: _json(each.path) for each in pull(files)}


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8-sig")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: this is no JSON") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: a JSON object was expected, this is a {type(found).__name__}")
    return found


def _hub_id(place: str) -> tuple[str, str]:
    """A place on the hub as a repository and the name of one file of it, or nothing."""
    owner, *rest = place.split("/")
    if len(rest) not in (1, 2) or not owner or not all(rest) or place.startswith((".", "~", "/")):
        raise UsageError(f"{place!r} is no hub id (owner/name); a folder of this machine needs no pulling")
    return f"{owner}/{rest[0]}", rest[1] if rest[1:] else ""


def _of_place(place: str, part: Part | None, allow_pickle: bool) -> list[Wanted]:
    repository, alone = _hub_id(place)
    files = _listed(repository)
    if alone:
        files = [file for file in files if file.name == alone]
        if not files:
            raise CheckpointError(f"{repository} has no file {alone}")
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
        places = json.loads(pulled.path.read_text("utf-8-sig"))["weight_map"]
        needed = {file for name, file in places.items() if (found := canonical(name)) and found[0] == part}
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{pulled.path}: this is no index of weights") from error
    return [file for file in weights if file.name in needed]


def _listed(repository: str) -> list[Wanted]:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, files_metadata=True)
    except Exception as error:
        raise _unreachable(repository, error) from error
    return [
        Wanted(
            repository,
            str(info.sha),
            each.rfilename,
            each.size or 0,
            each.lfs.sha256 if each.lfs else None,
            each.blob_id,
        )
        for each in info.siblings or []
        if "/" not in each.rfilename
    ]


def _unreachable(repository: str, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    reason = "could not be fetched from the hub: it is not reached from here, or broke off too often"
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


def _absent(folder: Path) -> Iterator[str]:
    """The files that a folder's index names and that are not there."""
    for index in folder.glob("*.index.json"):
        try:
            places: Any = json.loads(index.read_text("utf-8-sig"))["weight_map"]
            yield from sorted({name for name in places.values() if not (folder / name).is_file()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            yield f"{index.name} (damaged)"
