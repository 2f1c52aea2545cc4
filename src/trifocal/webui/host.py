"""text-generation-webui as an extension meets it: the model it holds, its tokenizer, its budget, its words.

The host's modules are looked up when they are needed, by name, so that this file can be read, typed
and tested without it. What is used of them is the same from April 2023 to v4.7: ``modules.shared``
(``model``, ``tokenizer``, ``model_name``, ``args``, ``settings``, ``gradio``) and
``modules.text_generation`` (``encode``, ``get_max_prompt_length``).
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.errors import TrifocalError, UsageError
from trifocal.webui.matching import ModelFacts

if TYPE_CHECKING:
    import torch

__all__ = ["Host", "HostTokenizer"]

_PICTURE_TOKENS = re.compile(r"(?<=<)(?=(?:im_patch|im_start|im_end|image)>)")
_LAST_ROWS = {"<im_patch>": -3, "<im_start>": -2, "<im_end>": -1}
_EMBEDDERS = ("multimodal_embedder", "llava_embedder")  # in the host's own extensions that see: 2025's and the seed
_MEDIA_LOADERS = "llama.cpp with --mmproj and ExLlamav3 show pictures to models that have sight of their own"


class Host:
    """The running text-generation-webui."""

    @property
    def shared(self) -> Any:
        """The host's ``modules.shared``."""
        return importlib.import_module("modules.shared")

    @property
    def model(self) -> Any:
        """The language model, or None."""
        return None if self.shared.model_name in (None, "None") else self.shared.model

    @property
    def log(self) -> logging.Logger:
        """The host's own logger where it has one, so that its console shows what is logged."""
        colours = sys.modules.get("modules.logging_colors")
        logger = getattr(colours, "logger", None)
        return logger if isinstance(logger, logging.Logger) else logging.getLogger("trifocal")

    @property
    def builds_by_text(self) -> bool:
        """Whether this host counts a chat's length by its text alone (before 10 May 2023).

        Such a host takes a picture's base64 for thousands of tokens of history.
        """
        hooks = getattr(sys.modules.get("modules.extensions"), "EXTENSION_MAP", {"tokenized_length": None})
        return "tokenized_length" not in hooks

    @property
    def history(self) -> Mapping[str, Any]:
        """The one history of a host that keeps it for all (before May 2023)."""
        kept: Mapping[str, Any] = getattr(self.shared, "history", {})
        return kept

    @property
    def chat_prompt(self) -> Any:
        """The host's own builder of chat prompts, or None where it has none by that name."""
        return getattr(sys.modules.get("modules.chat"), "generate_chat_prompt", None)

    def others_chat_prompt(self, asking: object) -> Any:
        """The builder of chat prompts of another extension, or None: the host asks the first that has one, and no more.

        ``asking`` is the extension whose own builder is passed over.
        """
        extensions = getattr(sys.modules.get("modules.extensions"), "iterator", tuple)
        hooks = (getattr(script, "custom_generate_chat_prompt", None) for script, _ in extensions())
        return next((hook for hook in hooks if hook and getattr(hook, "__self__", None) is not asking), None)

    def others_that_see(self) -> list[str]:
        """The names of the host's own extensions for pictures that are switched on."""
        extensions = getattr(sys.modules.get("modules.extensions"), "iterator", tuple)
        return [name for script, name in extensions() if any(hasattr(script, held) for held in _EMBEDDERS)]

    def check_embeddings(self) -> None:
        """Sees to it that embeddings that came with a prompt may be replaced: those of others that see, and no others.

        Raises:
            UsageError: they are a soft prompt's, or of an extension that nobody knows.
        """
        if getattr(self.shared, "soft_prompt", False):
            raise UsageError("a soft prompt and a picture can't stand in one prompt: clear the soft prompt")
        if not self.others_that_see():
            raise UsageError(
                "another extension has put embeddings into this prompt, and a picture's can't be put beside them: "
                "switch that extension off, or name it behind this one in --extensions"
            )

    @property
    def sees_natively(self) -> bool:
        """Whether the loaded model takes pictures without help."""
        return bool(getattr(self.shared, "is_multimodal", False))

    def check_loader(self) -> None:
        """Sees to it that the model takes embeddings.

        Raises:
            UsageError: no model is loaded, or its loader takes no embeddings; says what to do.
        """
        if self.model is None:
            raise UsageError("no model is loaded, so nobody can look at the picture: load one in the Model tab")
        if self._embedding() is None:
            loader = getattr(self.shared.args, "loader", None) or type(self.model).__name__
            raise UsageError(
                f"the picture can't be shown: the loader {loader} takes no embeddings. Load the model with the "
                f"Transformers loader (--loader Transformers); {_MEDIA_LOADERS}"
            )

    def facts(self) -> ModelFacts:
        """The loaded model's configuration, as far as it tells which pictures the model understands."""
        rows, hidden = self._embedding().weight.shape
        return ModelFacts(str(self.shared.model_name), int(hidden), int(rows), self._folder())

    def encode(self, text: str, add_bos: bool) -> list[int]:
        """Ids of a prompt's beginning, exactly as the host makes them for a prompt without pictures."""
        try:
            ids = importlib.import_module("modules.text_generation").encode(text, add_bos_token=add_bos)
        except IndexError:  # the host of 2023 looks at the first id even where there is none
            return []
        return [int(i) for i in ids[0]]

    def room(self, state: Mapping[str, Any]) -> int:
        """How many positions the prompt may take: the context less the tokens asked for."""
        return int(importlib.import_module("modules.text_generation").get_max_prompt_length(state))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The model's own input embeddings of ids ``[n]``: rows ``[n, hidden]``."""
        import torch

        layer = self._embedding()
        device = self.model.device if layer.weight.is_meta else layer.weight.device
        with torch.no_grad():
            rows: torch.Tensor = layer(ids.to(device))
        return rows

    def fetch(self, url: str) -> bytes:
        """What is behind a web address, by the host's own fetching, which keeps to public addresses."""
        answer = importlib.import_module("modules.web_search").safe_get(url, timeout=10)
        answer.raise_for_status()
        content: bytes = answer.content
        return content

    def placeholder(self) -> int:
        """An id to stand where pictures are, for the host's counts and penalties.

        It is the model's own token for that if there is one, else ``<unk>``, else the beginning token,
        else the first that will do. It is never the padding id: transformers from 4.47 on masks every
        position that holds it, even where embeddings are given, and the model would be blind.
        """
        tokenizer, model = self.shared.tokenizer, self.model
        generation = getattr(model, "generation_config", None)
        barred = {getattr(generation, "pad_token_id", None), getattr(model.config, "pad_token_id", None)}
        barred |= {getattr(tokenizer, "pad_token_id", None)}
        barred |= _ids(getattr(generation, "eos_token_id", None)) | _ids(getattr(tokenizer, "eos_token_id", None))
        named = [HostTokenizer(self, add_bos=False).token(name) for name in ("<im_patch>", "<image>")]
        first = [*named, getattr(tokenizer, "unk_token_id", None), getattr(tokenizer, "bos_token_id", None)]
        rows = self._embedding().weight.shape[0]
        return next(int(i) for i in [*first, *range(rows)] if i is not None and i not in barred and i < rows)

    def spare_cudnn_attention(self) -> None:
        """Has torch take another of its attentions than cuDNN's, which plans anew for every new length.

        torch from 2.5 on prefers it on new GPUs, and the host decodes over a cache that grows by one. On an H100 with
        torch 2.11, a step of a 13B model of our own engine's took 62 ms with it and 28.5 ms without.
        """
        import torch

        switch = getattr(torch.backends.cuda, "enable_cudnn_sdp", None)
        if switch is not None and getattr(self.model.device, "type", "") == "cuda":
            switch(False)

    def note_length(self, positions: int) -> None:
        """Tells the host how long the prompt was: its chat API counts by this attribute."""
        if self.model is not None:
            self.model.last_prompt_token_count = positions

    def told(self, error: TrifocalError) -> Exception:
        """The error in the shape that this host shows to its user: in the page, and as a 400 in its API.

        The web frameworks' own classes are used where they are loaded; the class that comes back is a
        child of all of them.
        """
        begun: list[tuple[type[Exception], dict[str, Any]]] = []
        errors, fastapi, gradio = (sys.modules.get(n) for n in ("modules.api.errors", "fastapi", "gradio"))
        if errors is not None:
            begun.append((errors.InvalidRequestError, {"message": str(error), "param": "messages"}))
        elif fastapi is not None:
            begun.append((fastapi.HTTPException, {"status_code": 400, "detail": str(error)}))
        if gradio is not None:
            begun.append((gradio.Error, {"message": str(error)}))
        kinds = tuple(kind for kind, _ in begun) or (RuntimeError,)
        told: type[Exception] = type("PictureError", kinds, {"__str__": lambda self: str(error), "is_told": True})
        exception = told.__new__(told, str(error))
        for kind, values in begun:
            kind.__init__(exception, **values)
        return exception

    def _embedding(self) -> Any:
        """The model's input embedding, or None where its loader keeps it to itself."""
        get = getattr(self.model, "get_input_embeddings", None)
        try:
            layer = get() if get is not None else None
        except (NotImplementedError, AttributeError):
            return None
        return layer if hasattr(layer, "weight") else None

    def _folder(self) -> Path | None:
        args, name = self.shared.args, str(self.shared.model_name)
        for root in (getattr(args, "model_dir", None), "models", "."):
            if root and (Path(root) / name / "config.json").is_file():
                return Path(root) / name
        return None


class HostTokenizer:
    """The host's tokenizer in Trifocal's shape.

    The host hands its extensions one string in which its template has already written control tokens
    (``</s>`` between turns), so these stay what they are in a prompt without pictures. The tokens that
    mark pictures come from `Composer` alone: the same letters in the string stay letters.
    """

    def __init__(self, host: Host, *, add_bos: bool) -> None:
        self._host, self._add_bos = host, add_bos

    def encode(self, text: str, *, start: bool, after: str | None = None, before: str | None = None) -> list[int]:
        """Ids of ``text``; ``start`` puts the beginning token in front if the host's state asks for it."""
        first, *rest = _PICTURE_TOKENS.split(text)
        ids = self._host.encode(first, self._add_bos) if start else self._plain(first)
        return [*ids, *(i for piece in rest for i in self._plain(piece))]

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``, without control tokens."""
        return str(self._host.shared.tokenizer.decode(ids, skip_special_tokens=True))

    def token(self, name: str) -> int | None:
        """The id of the token called ``name``, or None."""
        tokenizer = self._host.shared.tokenizer
        found = tokenizer.convert_tokens_to_ids(name)
        unknown = getattr(tokenizer, "unk_token_id", None)
        if found is None or (found == unknown and name != getattr(tokenizer, "unk_token", None)):
            return self._by_place(name)
        return int(found)

    def _by_place(self, name: str) -> int | None:
        """The id that LLaVA v0 was trained with, where the tokenizer's files came from plain LLaMA."""
        rows = self._host.facts().vocabulary
        return _LAST_ROWS[name] + rows if rows in (32003, 32004) and name in _LAST_ROWS else None

    def _plain(self, text: str) -> list[int]:
        ids = self._host.shared.tokenizer.encode(text, add_special_tokens=False) if text else []
        return [int(i) for i in ids]


def _ids(value: Any) -> set[Any]:
    return set(value) if isinstance(value, (list, tuple)) else {value}
