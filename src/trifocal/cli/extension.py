"""``trifocal extension``: puts the extension where a text-generation-webui looks for it, and tells what is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trifocal import __version__
from trifocal.cli.configuration import ConfiguredGroup
from trifocal.conversation.exported import exported
from trifocal.conversation.templates import TEMPLATES, Template
from trifocal.errors import CheckpointError, UsageError
from trifocal.hub.locate import is_here
from trifocal.webui.matching import ModelFacts, known_parts, split_beside, tells_its_vision

__all__ = ["Finding", "WebUI", "check", "extension", "install", "instruction_template"]

SCRIPT = Path(__file__).parent.parent / "webui" / "script.py"
_OURS = "trifocal.webui"
_SET_ASIDE = "script.py.before-trifocal"
# the host's menu of instruction templates: its name there, our template
INSTRUCTIONS = {
    "LLaVA-v0": "llava_v0_webui_inline",
    "LLaVA-v0-lines": "llava_v0_webui",
    "LLaVA-v1": "llava_v1",
    "LLaVA-Llama-2": "llava_llama_2",
}
_REFUSED = re.compile(r"(vip)?llava(_(llama|next|next_video|onevision|mistral|mpt|qwen))?")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: whether it is as it must be, what was seen, and what to do."""

    good: bool
    seen: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{'ok  ' if self.good else 'todo'}  {self.seen}" + (f"\n      {self.todo}" if self.todo else "")


@dataclass(frozen=True, slots=True)
class WebUI:
    """A text-generation-webui on disk; ``extension`` is the folder's name, and the prefix of its settings."""

    root: Path
    extension: str = "llava"

    def __post_init__(self) -> None:
        if not (self.root / "server.py").is_file() or not (self.root / "modules" / "extensions.py").is_file():
            raise UsageError(f"{self.root} is no text-generation-webui: no server.py and modules/extensions.py")
        if not re.fullmatch(r"[A-Za-z0-9_]+", self.extension):
            raise UsageError(f"an extension's name is letters, digits and _, not {self.extension!r}")

    @property
    def date(self) -> str:
        """Which of the host's ages this is, by the hooks that it knows."""
        hooks = (self.root / "modules" / "extensions.py").read_text("utf-8", errors="replace")
        if self.user is not self.root:
            return "2025 or later (extensions in user_data)"
        return "of April and May 2023" if "chat_input" not in hooks else "of 2023 to 2025"

    @property
    def user(self) -> Path:
        """Where the user's own files are: ``user_data``, or the host's folder itself before that existed."""
        return self.root / "user_data" if (self.root / "user_data").is_dir() else self.root

    @property
    def folder(self) -> Path:
        """The extension's folder, in the first place in which this host looks."""
        return self.user / "extensions" / self.extension

    @property
    def templates(self) -> Path:
        """The folder of instruction templates; it need not be there."""
        return self.user / "instruction-templates"

    @property
    def start(self) -> str:
        """The start flags that this host wants; before June 2023 it had one loader for all, and no flag for it."""
        return f"--extensions {self.extension}" + (" --loader Transformers" if self.has_loaders else "")

    @property
    def has_loaders(self) -> bool:
        """Whether this host lets its user choose a loader, by the flags that it defines; else by its age."""
        defined = self._source("modules/shared.py")
        return "--loader" in re.findall(r"""["'](--[\w-]+)["']""", defined) if defined else not self._is_first

    @property
    def flags_file(self) -> Path | None:
        """The file in which this host reads start flags, there or not; None where it reads none."""
        reads = not self._is_first or any(
            "CMD_FLAGS" in self._source(file) for file in ("one_click.py", "modules/shared.py", "server.py")
        )
        there = (file for file in self._flags_files if file.is_file())
        return next(there, self._flags_files[0] if reads else None)

    @property
    def _is_first(self) -> bool:
        return "2025" not in self.date

    @property
    def _flags_files(self) -> tuple[Path, Path]:
        return self.user / "CMD_FLAGS.txt", self.root / "CMD_FLAGS.txt"

    def _source(self, file: str) -> str:
        path = self.root / file
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""

    @property
    def flags(self) -> str:
        """The start flags kept in a file, without comments."""
        file = self.flags_file
        lines = file.read_text("utf-8", errors="replace").splitlines() if file and file.is_file() else []
        return " ".join(line for line in lines if not line.lstrip().startswith("#"))

    @property
    def settings(self) -> str:
        """The text of the settings that it reads by itself at its start."""
        for name in ("settings.yaml", "settings.json"):
            file = self.user / name
            if file.is_file():
                return file.read_text("utf-8", errors="replace")
        return ""

    @property
    def models(self) -> Path:
        """The folder of models."""
        return self.user / "models"


def install(webui: WebUI) -> Iterator[str]:
    """Puts the extension into its folder and tells step by step what was done.

    The folder gets the script and a copy of this package, so that nothing has to be installed into the
    host's own Python, whose pinned versions stay as they are. A script of somebody else's that is there
    already is kept beside it. Where the host has instruction templates, LLaVA's are put among them.

    Raises:
        UsageError: the folder can't be written.
    """
    try:
        yield from _install(webui)
    except OSError as error:
        raise UsageError(f"{error.filename or webui.folder}: {error.strerror or error}") from error


def _install(webui: WebUI) -> Iterator[str]:
    script = webui.folder / "script.py"
    webui.folder.mkdir(parents=True, exist_ok=True)
    if script.is_file() and _OURS not in script.read_text("utf-8", errors="replace"):
        script.replace(webui.folder / _SET_ASIDE)
        yield f"another extension's script was there; it is kept as {webui.folder / _SET_ASIDE}"
    shutil.copyfile(SCRIPT, script)
    yield f"wrote {script}"
    package = webui.folder / "trifocal"
    if package.is_dir():
        shutil.rmtree(package)
    shutil.copytree(Path(__file__).parent.parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    yield f"copied Trifocal {__version__} to {package}"
    if webui.templates.is_dir():
        for name, template in INSTRUCTIONS.items():
            file = webui.templates / f"{name}.yaml"
            if not file.exists():
                file.write_text(instruction_template(TEMPLATES[template]), "utf-8")
                yield f"wrote the instruction template {file}"
    yield f"start the host with: {webui.start}"


def check(webui: WebUI) -> Iterator[Finding]:
    """What this host still needs before its model can see: extension, flags, loader, templates, weights."""
    yield Finding(True, f"text-generation-webui {webui.date} at {webui.root}")
    yield _script(webui)
    yield _enabled(webui)
    yield _loader(webui)
    if webui.user is not webui.root or webui.templates.is_dir():
        yield _templates(webui)
    folders = sorted(path.parent for path in webui.models.glob("*/config.json"))
    if not folders:
        todo = "put a language model there, or make one from a LLaVA: trifocal convert split CHECKPOINT --out FOLDER"
        yield Finding(False, f"{webui.models} holds no model that the Transformers loader could open", todo)
    yield from (_model(folder) for folder in folders)


def _script(webui: WebUI) -> Finding:
    script, package = webui.folder / "script.py", webui.folder / "trifocal" / "__init__.py"
    again = f"trifocal extension install --webui {webui.root} --name {webui.extension}"
    if not script.is_file():
        return Finding(False, f"{script} is not there", again)
    if script.read_bytes() != SCRIPT.read_bytes():
        return Finding(False, f"{script} is not that of Trifocal {__version__}", again)
    if not package.is_file():
        return Finding(False, f"{package.parent} is not there", again)
    version = re.search(r'__version__ = "([^"]+)"', package.read_text("utf-8"))
    if version is None or version[1] != __version__:
        return Finding(False, f"{package.parent} holds Trifocal {version[1] if version else 'unknown'}", again)
    return Finding(True, f"extension {webui.extension}, Trifocal {__version__}, at {webui.folder}")


def _enabled(webui: WebUI) -> Finding:
    flagged = re.search(rf"--extensions\b[^-]*\b{webui.extension}\b", webui.flags)
    listed = re.search(rf"default_extensions[\"']?\s*:[^:]*\b{webui.extension}\b", webui.settings)
    if flagged or listed:
        return Finding(True, "switched on by its start flags or settings")
    written = f", or write that into {webui.flags_file}" if webui.flags_file else ""
    todo = f"start the host with --extensions {webui.extension}{written}"
    return Finding(False, f"no start flag or setting switches {webui.extension} on", todo)


def _loader(webui: WebUI) -> Finding:
    if not webui.has_loaders:
        return Finding(True, "loader: this host's own; it hands pictures' embeddings to every model but FlexGen's")
    named = re.search(r"--loader[ =]+(\S+)", webui.flags)
    if named and named[1].lower() != "transformers":
        todo = "--loader Transformers: no other loader of this host hands pictures' embeddings to its model"
        return Finding(False, f"the start flags choose the loader {named[1]}", todo)
    return Finding(True, "loader: load the model with Transformers (Model tab, or --loader Transformers)")


def _templates(webui: WebUI) -> Finding:
    missing = [name for name in INSTRUCTIONS if not (webui.templates / f"{name}.yaml").is_file()]
    if missing:
        todo = f"trifocal extension install --webui {webui.root} writes them"
        return Finding(False, f"instruction templates not there: {', '.join(missing)}", todo)
    return Finding(True, f"instruction templates there: {', '.join(INSTRUCTIONS)}")


def _model(folder: Path) -> Finding:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        return Finding(False, f"{folder.name}: config.json can't be read ({error})", "fetch the model again")
    family = str(config.get("model_type"))
    if _REFUSED.fullmatch(family):
        todo = f"trifocal convert split {folder} --out FOLDER makes a language model that the loader opens"
        return Finding(False, f"{folder.name}: the Transformers loader refuses model_type {family!r}", todo)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return Finding(False, f"{folder.name}: no weights (*.safetensors or *.bin) in it", "fetch the model again")
    return _vision(folder)


def _vision(folder: Path) -> Finding:
    """Whether the tower and projector that fit a model are on this machine."""
    try:
        facts = ModelFacts.of_folder(folder)
    except CheckpointError as error:
        return Finding(False, str(error), "fetch the model again")
    parts = known_parts(facts)
    if tells_its_vision(folder):
        return Finding(True, f"{folder.name} tells in its config.json how it sees")
    if split_beside(folder) is not None:
        return Finding(True, f"{folder.name} sees with the tower and projector beside {folder.resolve()}")
    if parts is None:
        todo = "if it is a LLaVA's language half, set llava-checkpoint to that LLaVA; else it is for text alone"
        return Finding(False, f"{folder.name}: no tower and projector are known to fit it", todo)
    needed = (
        ["thimble"] if parts == "thimble" else [parts] if isinstance(parts, str) else [parts.tower, parts.projector]
    )
    absent = [name for name in needed if name != "thimble" and not is_here(name)]
    if absent:
        todo = "they are fetched when the first picture comes; offline, name folders in the settings"
        return Finding(
            False, f"{folder.name}: its tower and projector are not on this machine yet: {', '.join(absent)}", todo
        )
    return Finding(True, f"{folder.name} sees with {' and '.join(needed)}")


def instruction_template(template: Template) -> str:
    """A conversation family as an instruction template of the host: Jinja2 inside YAML."""
    return "instruction_template: |-\n" + "".join(f"  {line}\n" for line in exported(template).splitlines())


@click.group(cls=ConfiguredGroup)
def extension() -> None:
    """Sight for the language model of a text-generation-webui.

    \b
    trifocal extension install --webui ~/text-generation-webui
    trifocal extension check --webui ~/text-generation-webui
    """


_webui = click.option(
    "--webui", required=True, type=click.Path(path_type=Path), help="The folder with the host's server.py."
)
_name = click.option(
    "--name", default="llava", show_default=True, help="The extension's folder, and its settings' prefix."
)


@extension.command("install")
@_webui
@_name
def install_command(webui: Path, name: str) -> None:
    """Put the extension where this host looks for it; running it again updates it."""
    for step in install(WebUI(webui, name)):
        click.echo(step)


@extension.command("check")
@_webui
@_name
def check_command(webui: Path, name: str) -> None:
    """Tell what is missing: extension, start flags, loader, templates, weights. Exit code 1 if anything is."""
    findings = list(check(WebUI(webui, name)))
    for finding in findings:
        click.echo(str(finding))
    if not all(finding.good for finding in findings):
        raise click.exceptions.Exit(1)
