"""Hosts of three ages that hold the language half of a tiny LLaVA v0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosts import AGES, Host
from tiny_parts import Parts, make_parts


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("v0"))


@pytest.fixture
def settings(parts: Parts) -> dict[str, Any]:
    """The seed's settings, naming the parts as the seed does."""
    return {
        "llava-clip_repo": str(parts.clip),
        "llava-projector_repo": str(parts.llava),
        "llava-projector_filename": "mm_projector.bin",
        "llava-clip_device": "cpu",
        "llava-projector_device": "cpu",
    }


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: Parts, settings: dict[str, Any]
) -> Callable[..., Host]:
    """Starts a host of an age with the extension in it; values replace what ``modules.shared`` holds."""

    def begin(
        age: str, *, name: str = "llava", ui: bool = True, own: dict[str, Any] | None = None, **shared: Any
    ) -> Host:
        shared.setdefault("model", parts.language)
        host = AGES[age](monkeypatch, tmp_path, parts.models, tokenizer=parts.tokenizer, **shared)
        host.shared.settings.update(settings if own is None else own)
        host.load(name, ui=ui)
        return host

    if hasattr(parts.language, "last_prompt_token_count"):
        del parts.language.last_prompt_token_count
    return begin
