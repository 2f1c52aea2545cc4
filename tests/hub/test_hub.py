"""Hub ids: this machine's cache first, a download where it is needed, an error that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from trifocal.errors import CheckpointError, UsageError
from trifocal.hub.locate import CONFIGS, PICKLES, WEIGHTS, is_here, locate

EVERYTHING = (*CONFIGS, *WEIGHTS, *PICKLES)
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts files into a cache laid out as the hub's own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def put(repository: str, **files: str) -> Path:
        home = tmp_path / f"models--{repository.replace('/', '--')}"
        snapshot = home / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True, exist_ok=True)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text("a" * 40)
        for name, text in files.items():
            (snapshot / name.replace("__", ".").replace("_of_", "-of-")).write_text(text)
        return snapshot

    return put


class Hub:
    """A hub of one repository, that notes what it was asked for; nothing of it is on this machine."""

    def __init__(self, home: Path, files: dict[str, str]) -> None:
        self.home, self.files, self.asked = home, files, list[list[str]]()

    def snapshot_download(self, repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        self.asked.append(allow_patterns)
        self.home.mkdir(exist_ok=True)
        for name, text in self.files.items():
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (self.home / name).write_text(text)
        return str(self.home)


def hub_of(monkeypatch: pytest.MonkeyPatch, home: Path, *names: str) -> Hub:
    hub = Hub(home, dict.fromkeys(names, "{}"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert locate(str(tmp_path), CONFIGS) == tmp_path


def test_what_is_in_the_cache_needs_no_network(put: Put) -> None:
    snapshot = put("owner/model", config__json="{}", model__safetensors="x")
    assert locate("owner/model", EVERYTHING) == snapshot
    assert is_here("owner/model")


def test_one_file_of_a_repository(put: Put) -> None:
    snapshot = put("owner/model", mm_projector__bin="x")
    assert locate("owner/model/mm_projector.bin", EVERYTHING) == snapshot / "mm_projector.bin"
    with pytest.raises(CheckpointError, match=r"owner/model: .*another\.bin.* could not be fetched"):
        locate("owner/model/another.bin", EVERYTHING)


def test_a_fetch_that_was_cut_off_is_not_taken_for_whole(put: Put) -> None:
    shards = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    snapshot = put("owner/model", config__json="{}")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(shards))
    (snapshot / "model-1-of-2.safetensors").write_text("x")
    with pytest.raises(CheckpointError, match="could not be fetched"):
        locate("owner/model", EVERYTHING)
    (snapshot / "model-2-of-2.safetensors").write_text("x")
    assert locate("owner/model", EVERYTHING) == snapshot


def test_pickles_in_the_cache_serve_where_there_is_nothing_else(put: Put) -> None:
    snapshot = put("owner/model", config__json="{}", pytorch_model__bin="x")
    assert locate("owner/model", EVERYTHING) == snapshot
    with pytest.raises(CheckpointError, match="could not be fetched"):
        locate("owner/model", (*CONFIGS, *WEIGHTS))


def test_pickles_are_not_fetched_beside_safetensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = hub_of(monkeypatch, tmp_path / "hub", "config.json", "model.safetensors", "pytorch_model.bin", "flax.msgpack")
    folder = locate("owner/model", EVERYTHING)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert hub.asked == [[*CONFIGS, *WEIGHTS]]


def test_pickles_are_fetched_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub_of(monkeypatch, tmp_path / "hub", "config.json", "pytorch_model.bin", "tf_model.h5")
    folder = locate("owner/model", EVERYTHING)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_a_repository_without_weights_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub_of(monkeypatch, tmp_path / "hub", "config.json", "README.md")
    with pytest.raises(CheckpointError, match=r"owner/model: what is needed of it .* could not be fetched"):
        locate("owner/model", EVERYTHING)


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("bad"), huggingface_hub.errors.HTTPError("cut")])
def test_a_hub_out_of_reach_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    hub = hub_of(monkeypatch, tmp_path / "hub")

    def fail(repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only:
            return hub.snapshot_download(repository, allow_patterns=allow_patterns, local_files_only=True)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="download it elsewhere and give the folder's path") as raised:
        locate("owner/model", EVERYTHING)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("name", ["nowhere", "/not/there", "./not/there", "a/b/c/d", "~/x", "bad name/x y", "a/--b"])
def test_what_is_neither_path_nor_id_is_refused(put: Put, name: str) -> None:
    with pytest.raises(UsageError, match="no file or folder here"):
        locate(name, EVERYTHING)
    assert not is_here(name)
