"""Three ages of text-generation-webui as far as an extension can tell: their modules, states and calling order.

``A`` is the host of 2023-04-30, ``B`` of 2025-04-09, ``C`` of v4.7. Each knows which hooks it calls, in
which order, with which arguments, and what it does with what comes back; nothing else of it is here.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import logging
import sys
import types
import typing
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

import trifocal.webui

SCRIPT = Path(trifocal.webui.__file__).with_name("script.py")


class Component:
    """A control of the page: remembers what was tied to its events, and can fire them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs, self.events = args, kwargs, {}

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getattr__(self, event: str) -> Any:
        if event not in ("upload", "clear", "change", "click", "submit"):
            raise AttributeError(event)

        def tie(function: Any, inputs: Any = None, outputs: Any = None) -> None:
            typing.get_type_hints(function)  # as gradio does, which fails on what is imported for types alone
            self.events.setdefault(event, []).append(function)

        return tie

    def fire(self, event: str, *values: Any) -> None:
        for function in self.events.get(event, []):
            function(*values)


def gradio() -> types.ModuleType:
    """As much of gradio as a picture field needs; ``made`` lists the controls in their order."""
    module = types.ModuleType("gradio")
    module.made = []

    def make(*args: Any, **kwargs: Any) -> Component:
        module.made.append(Component(*args, **kwargs))
        return module.made[-1]

    class Error(Exception):
        def __init__(self, message: str) -> None:
            self.message = message
            super().__init__(message)

    module.Column = module.Image = module.Checkbox = make
    module.Error = Error
    return module


def hub_of_2023(patch: pytest.MonkeyPatch, cache: dict[str, Path]) -> None:
    """Puts huggingface_hub 0.16.4 in the place of today's: no ``errors``, and plain errors where nothing is cached."""
    library, utils = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.utils")

    class HFValidationError(ValueError):
        pass

    def validate_repo_id(name: str) -> None:
        if name.count("/") > 1 or ".." in name or "--" in name:
            raise HFValidationError(f"Repo id must be in the form 'namespace/repo_name': {name!r}")

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        validate_repo_id(name)
        if name in cache:
            return str(cache[name])
        if local_files_only:
            raise FileNotFoundError(2, "No such file or directory", f"models--{name.replace('/', '--')}/refs/main")
        raise ConnectionError("Failed to resolve 'huggingface.co'")  # requests' is an OSError too

    utils.validate_repo_id, utils.HFValidationError = validate_repo_id, HFValidationError
    library.snapshot_download, library.utils, library.__path__ = snapshot_download, utils, []
    patch.setitem(sys.modules, "huggingface_hub", library)
    patch.setitem(sys.modules, "huggingface_hub.utils", utils)
    patch.setitem(sys.modules, "huggingface_hub.errors", None)


class Host:
    """What the three ages have in common. ``state()`` gives a request's state with the values given."""

    age = ""
    hooks: tuple[str, ...] = ()

    def __init__(
        self, patch: pytest.MonkeyPatch, folder: Path, models: Path, model: Any, tokenizer: Any, **shared: Any
    ) -> None:
        self.patch, self.folder = patch, folder
        self.calls: list[str] = []
        self.generated: list[dict[str, Any]] = []
        self.shared = self._module("modules.shared", model=model, tokenizer=tokenizer)
        self.shared.model_name = "tiny-llava-13b-v0" if model is not None else "None"
        self.shared.settings, self.shared.default_settings = {}, {}
        self.shared.args = Namespace(model_dir=str(models), extensions=["llava"], cpu=True, nowebui=False)
        self.shared.gradio = {"Generate": Component(), "textbox": Component()}
        self._shape()
        for name, value in shared.items():
            setattr(self.shared, name, value)
        self._module("modules.text_generation", encode=self.encode, get_max_prompt_length=self.room)
        self.extensions = self._module(
            "modules.extensions", EXTENSION_MAP=dict.fromkeys(self.hooks), iterator=self.iterator
        )
        self.gradio = gradio()
        patch.setitem(sys.modules, "gradio", self.gradio)
        self.extension: Any = None
        self.before: list[tuple[Any, str]] = []  # other extensions, in the order in which they were named
        self.others: list[tuple[Any, str]] = []

    def _shape(self) -> None:
        raise NotImplementedError

    def _module(self, name: str, **values: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        vars(module).update(values)
        self.patch.setitem(sys.modules, name, module)
        if "modules" not in sys.modules:
            package = types.ModuleType("modules")
            package.__path__ = []
            self.patch.setitem(sys.modules, "modules", package)
        self.patch.setattr(sys.modules["modules"], name.split(".")[-1], module, raising=False)
        return module

    def load(self, name: str = "llava", ui: bool = True) -> Any:
        """Imports the script as this age does, applies settings, then ``setup`` and ``ui``."""
        self.extension = self._import(name)
        for key in self.extension.params:
            self.shared.default_settings[f"{name}-{key}"] = self.extension.params[key]
            if f"{name}-{key}" in self.shared.settings:
                self.extension.params[key] = self.shared.settings[f"{name}-{key}"]
        self.hook("setup")
        if ui:
            self.hook("ui")
        return self.extension

    def _import(self, name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"extensions.{name}.script", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        self.patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    def iterator(self) -> list[tuple[Any, str]]:
        return [*self.before, (self.extension, "llava"), *self.others]

    def hook(self, name: str, *args: Any, **kwargs: Any) -> Any:
        function = getattr(self.extension, name, None)
        if function is None:
            return None
        self.calls.append(name)
        return function(*args, **kwargs)

    def string_hook(self, name: str, text: str, state: dict[str, Any], is_chat: bool = False) -> str:
        """The arity of a string hook decides what it is given."""
        function = getattr(self.extension, name, None)
        if function is None:
            return text
        self.calls.append(name)
        names = list(inspect.signature(function).parameters)
        more = {"is_chat": is_chat} if "is_chat" in names else {}
        plain = [n for n in names if n != "is_chat"]
        return function(*([text, state] if len(plain) == 2 else [text]), **more)

    def state(self, **values: Any) -> dict[str, Any]:
        return {
            "max_new_tokens": 8,
            "truncation_length": 2048,
            "add_bos_token": True,
            "stream": False,
            "custom_stopping_strings": "",
            "name1": "You",
            "name2": "Assistant",
            "mode": "instruct",
            "history": {"internal": [], "visible": []},
            **values,
        }

    def room(self, state: dict[str, Any]) -> int:
        return state["truncation_length"] - state["max_new_tokens"]

    def encode(
        self,
        prompt: str,
        add_special_tokens: bool = True,
        add_bos_token: bool = True,
        truncation_length: int | None = None,
    ) -> Any:
        tokenizer = self.shared.tokenizer
        ids = tokenizer.encode(str(prompt), return_tensors="pt", add_special_tokens=add_special_tokens)
        return self._bos(ids.long(), add_bos_token)[:, -(truncation_length or 10**9) :]

    def _bos(self, ids: torch.Tensor, add: bool) -> torch.Tensor:
        raise NotImplementedError

    def generate(self, prompt: str, state: dict[str, Any]) -> list[int]:
        """Encodes, calls the tokenizer hook, generates greedily: the new ids."""
        ids = self.encode(prompt, add_bos_token=state["add_bos_token"], truncation_length=self.room(state))
        whole, embeds = prompt, None
        for script, _ in self.iterator():  # in the order of --extensions
            if script is self.extension:
                prompt, ids, embeds = self.hook("tokenizer_modifier", state, prompt, ids, embeds)
            elif hasattr(script, "tokenizer_modifier"):
                prompt, ids, embeds = script.tokenizer_modifier(state, prompt, ids, embeds)
        assert ids.dtype == torch.int64
        params = {"inputs": ids, "max_new_tokens": state["max_new_tokens"], "do_sample": False}
        if embeds is not None:
            assert embeds.shape[:2] == ids.shape
            assert embeds.dtype == self.shared.model.dtype
            params["inputs_embeds"] = embeds
        self.generated.append({**params, "prompt": whole})
        eos = [self.shared.tokenizer.eos_token_id]
        with torch.no_grad():
            output = self.shared.model.generate(**params, eos_token_id=eos)[0]
        return output[len(ids[0]) :].tolist()


class HostA(Host):
    """2023-04-30: `input_hijack` is the host's, lengths are counted by text, no state in string hooks."""

    age = "A"
    hooks = ("input", "output", "bot_prefix", "tokenizer", "input_hijack", "custom_generate_chat_prompt")

    def _shape(self) -> None:
        self.shared.soft_prompt = False
        self.shared.soft_prompt_tensor = None
        self.shared.model_type = "HF_generic"
        self.shared.history = {"internal": [], "visible": []}
        self._module("modules.chat", generate_chat_prompt=self.chat_rows)

    def _bos(self, ids: torch.Tensor, add: bool) -> torch.Tensor:
        return ids[:, 1:] if not add and ids[0][0] == self.shared.tokenizer.bos_token_id else ids

    def state(self, **values: Any) -> dict[str, Any]:
        state = super().state(context="Context.\n", turn_template="", chat_prompt_size=2048, chat_generation_attempts=1)
        del state["history"]
        return {**state, **values}

    def completions(self, prompt: str, **values: Any) -> list[int]:
        prompt = self.hook("input_modifier", prompt) or prompt
        return self.generate(prompt, self.state(**values))

    def chat(self, text: str, regenerate: bool = False, cont: bool = False, **values: Any) -> list[int]:
        state, visible = self.state(**values), None
        history = self.shared.history
        if not regenerate and not cont:
            hijack = self.extension.input_hijack
            if hijack["state"]:
                hijack["state"] = False
                text, visible = hijack["value"](text, visible) if callable(hijack["value"]) else hijack["value"]
            text = self.hook("input_modifier", text) or text
        else:
            text, visible = history["internal"][-1][0], history["visible"][-1][0]
            if regenerate:
                history["internal"].pop()
                history["visible"].pop()
        prompt = self.hook("custom_generate_chat_prompt", text, state, _continue=cont)
        prompt = self.chat_rows(text, state, _continue=cont) if prompt is None else prompt
        ids = self.generate(prompt, state)
        if not cont:
            history["internal"].append([text, "an answer"])
            history["visible"].append([visible or text, "an answer"])
        return ids

    def chat_rows(self, text: str, state: dict[str, Any], **how: Any) -> Any:
        """``modules.chat.generate_chat_prompt``: rows, the oldest left out by the length of their text."""
        room = min(self.room(state), state["chat_prompt_size"])
        user, bot = state["name1"], state["name2"]
        rows, turns = [f"{state['context'].strip()}\n"], self.shared.history["internal"]
        for at in range(len(turns) - 1, -1, -1):
            if len(self.encode("".join(rows))[0]) >= room:
                break
            said, answer = turns[at]
            last = how.get("_continue") and at == len(turns) - 1
            rows[1:1] = [f"{user}: {said.strip()}\n", f"{bot}: {answer.strip()}" + ("" if last else "\n")]
        if how.get("impersonate"):
            rows.append(f"{user}:")
        elif not how.get("_continue"):
            rows += [f"{user}: {text.strip()}\n"] * bool(text)
            rows.append(f"{bot}:")
        while len(rows) > (2 if how.get("impersonate") else 3) and len(self.encode("".join(rows))[0]) >= room:
            rows.pop(1)
        return ("".join(rows), rows) if how.get("also_return_rows") else "".join(rows)


class HostB(Host):
    """2025-04-09: the last version that came with a multimodal extension of its own."""

    age = "B"
    hooks = ("input", "output", "chat_input", "state", "history", "bot_prefix", "tokenizer", "tokenized_length")

    def _shape(self) -> None:
        self.shared.args.loader = "Transformers"
        self._module(
            "modules.chat", generate_chat_prompt=lambda text, state, **how: self.chat_prompt(text, state, **how)
        )
        logger = logging.getLogger("text-generation-webui")
        self._module("modules.logging_colors", logger=logger)

    def _bos(self, ids: torch.Tensor, add: bool) -> torch.Tensor:
        bos = self.shared.tokenizer.bos_token_id
        row = ids[0].tolist()
        while row and row[0] == bos:
            row = row[1:]
        return torch.tensor([[bos, *row] if add else row])

    def completions(self, prompt: str, **values: Any) -> list[int]:
        state = self.hook("state_modifier", self.state(**values)) or self.state(**values)
        prompt = self.string_hook("input_modifier", prompt, state)
        state = copy.deepcopy(state)
        return self.generate(prompt, state)

    def chat(
        self, text: str, regenerate: bool = False, cont: bool = False, files: Any = (), **values: Any
    ) -> dict[str, Any]:
        state = self.state(**values)
        output = copy.deepcopy(state["history"])
        state = self.hook("state_modifier", state) or state
        self._before(state, output)
        if not regenerate and not cont:
            self._attach(output, files)
            text, visible = self.hook("chat_input_modifier", text, text, state)
            text = self.string_hook("input_modifier", text, state, is_chat=True)
            output["internal"].append([text, ""])
            output["visible"].append([visible, ""])
        else:
            text = output["internal"][-1][0]
        self._collect(state, output)
        history = output if cont else {k: v[:-1] if k in ("internal", "visible") else v for k, v in output.items()}
        prompt = self.hook("custom_generate_chat_prompt", text, state, _continue=cont, history=history)
        if prompt is None:
            prompt = self.chat_prompt(text, state, history=history, _continue=cont)
        ids = self.generate(prompt, state)
        answer = self.shared.tokenizer.decode(ids, skip_special_tokens=True)
        output["internal"][-1][1] = output["internal"][-1][1] + answer if cont else answer
        output["visible"][-1][1] = output["internal"][-1][1]
        return output

    def api_chat(self, messages: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
        """``/v1/chat/completions``: each picture becomes a user's message of its own, written as a tag.

        What a user said last is answered, and what he said before that without an answer is a row whose answer is
        empty. The request's messages stay in the state.
        """
        rows, current = list[list[str]](), ""
        for message in messages:
            content = message["content"]
            for item in content if isinstance(content, list) else [{"type": "text", "text": content}]:
                if message["role"] == "assistant":
                    rows.append([current, item["text"]])
                    current = ""
                    continue
                rows += [[current, ""]] * bool(current)
                data = item["image_url"]["url"].split("base64,")[1] if item["type"] == "image_url" else ""
                current = f'<img src="data:image/jpeg;base64,{data}">' if data else item["text"]
        history = {"internal": rows, "visible": copy.deepcopy(rows)}
        output = self.chat(current, history=history, messages=messages, **values)
        return {"text": output["internal"][-1][1]}

    def impersonate(self, **values: Any) -> list[int]:
        state = self.state(**values)
        prompt = self.chat_prompt("", state, impersonate=True)
        return self.generate(prompt, state)

    def _before(self, state: dict[str, Any], output: dict[str, Any]) -> None: ...

    def _attach(self, output: dict[str, Any], files: Any) -> None: ...

    def _collect(self, state: dict[str, Any], output: dict[str, Any]) -> None: ...

    def _said(self, text: str, row: int, history: dict[str, Any]) -> str:
        return text

    def chat_prompt(self, text: str, state: dict[str, Any], **how: Any) -> str:
        """``USER: ...\\nASSISTANT: ...``; while the counted length is too long whole oldest turns go, then letters."""
        history = how.get("history") or state["history"]
        turns = [[self._said(q, row, history), a] for row, (q, a, *_) in enumerate(history["internal"])]
        if not how.get("_continue"):
            turns.append([self._said(text, len(turns), history), ""])

        def written() -> tuple[str, int]:
            prompt = "".join(f"USER: {q}\nASSISTANT: {a}\n" for q, a in turns).rstrip()
            if how.get("impersonate"):
                prompt = prompt.removesuffix("ASSISTANT:").rstrip()
            length = self.hook("custom_tokenized_length", prompt)
            return prompt, len(self.encode(prompt)[0]) if length is None else length

        prompt, length = written()
        while length > self.room(state) and len(turns) > 1:
            turns.pop(0)
            prompt, length = written()
        return prompt if length <= self.room(state) else self._cut(turns, written, self.room(state))

    def _cut(self, turns: list[list[str]], written: Any, room: int) -> str:
        """The longest beginning of the only message left that fits, found by halves; a ValueError if none does."""
        message, left, right = turns[-1][0], 0, len(turns[-1][0])
        while left < right:
            middle = (left + right + 1) // 2
            turns[-1][0] = message[:middle]
            left, right = (middle, right) if written()[1] <= room else (left, middle - 1)
        turns[-1][0] = message[:left]
        prompt, length = written()
        if length > room:
            raise ValueError
        return prompt


class HostC(HostB):
    """v4.7: pictures from its own chat box and API reach the state; user extensions are no package."""

    age = "C"

    def _shape(self) -> None:
        super()._shape()
        self.shared.is_multimodal = False
        self.shared.user_data_dir = self.folder / "user_data"

        class InvalidRequestError(Exception):
            def __init__(self, message: str, param: str, code: int = 400) -> None:
                self.message, self.param, self.code = message, param, code

        self.invalid = InvalidRequestError
        self._module("modules.api.errors", InvalidRequestError=InvalidRequestError)

    def _import(self, name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"user_ext_{name}", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        self.patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    def _bos(self, ids: torch.Tensor, add: bool) -> torch.Tensor:
        bos, row = self.shared.tokenizer.bos_token_id, ids[0].tolist()
        if add and row[:1] != [bos]:
            row = [bos, *row]
        while row[:2] == [bos, bos]:
            row = row[1:]
        return torch.tensor([row])

    def _before(self, state: dict[str, Any], output: dict[str, Any]) -> None:
        state["add_bos_token"] = False  # instruct mode leaves the beginning to the template and the tokenizer
        output.setdefault("metadata", {})

    def _attach(self, output: dict[str, Any], files: Any) -> None:
        row = {"attachments": list(files)} if files else {}
        output["metadata"][f"user_{len(output['internal'])}"] = row

    def _collect(self, state: dict[str, Any], output: dict[str, Any]) -> None:
        rows = [output["metadata"].get(f"user_{i}", {}) for i in range(len(output["internal"]))]
        found = [a for row in rows for a in row.get("attachments", []) if a["type"] == "image"]
        if found:
            state["image_attachments"] = found

    def _cut(self, turns: list[list[str]], written: Any, room: int) -> str:
        """As before it; then how much was cut, for its log: it measures the bare message and what is left of it."""
        message = turns[-1][0]
        prompt = super()._cut(turns, written, room)
        for words in (message, turns[-1][0]):
            self.hook("custom_tokenized_length", words)
        return prompt

    def _said(self, text: str, row: int, history: dict[str, Any]) -> str:
        attached = history.get("metadata", {}).get(f"user_{row}", {}).get("attachments", [])
        marks = "<__media__>" * sum(a["type"] == "image" for a in attached)
        return f"{marks}\n\n{text}" if marks else text

    def api_chat(self, messages: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
        """``/v1/chat/completions``: the request's messages stay beside the history made of them."""
        rows, question = [], ""
        for message in messages:
            content = message["content"]
            if isinstance(content, list):
                marks = "<__media__>" * sum(item["type"] == "image_url" for item in content)
                words = " ".join(item["text"] for item in content if item["type"] == "text")
                content = f"{marks}\n\n{words}" if marks else words
            if message["role"] == "user":
                question = content
            else:
                rows.append([question, content, "", {}])
        history = {"internal": rows, "visible": copy.deepcopy(rows), "messages": messages}
        output = self.chat(question, history=history, messages=messages, **values)
        count = getattr(self.shared.model, "last_prompt_token_count", 0)
        return {"text": output["internal"][-1][1], "usage": {"prompt_tokens": count}}


AGES = {"A": HostA, "B": HostB, "C": HostC}
