"""``trifocal extension``: what is put where in each age of the host, and what is found missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import save_file
from torch import zeros

from trifocal import __version__
from trifocal.checkpoints import find_checkpoint
from trifocal.cli.extension import INSTRUCTIONS, SCRIPT, WebUI, check, extension, install, instruction_template
from trifocal.conversation.templates import TEMPLATES, Control
from trifocal.errors import UsageError
from trifocal.messages import Message
from trifocal.tools.convert import split
from waiting import PATIENCE

HOOKS = {"A": "input_hijack", "B": "chat_input tokenized_length", "C": "chat_input tokenized_length"}


def host(folder: Path, age: str) -> Path:
    """The files by which a host of that age is known."""
    (folder / "modules").mkdir(parents=True)
    (folder / "server.py").write_text("")
    (folder / "modules" / "extensions.py").write_text(f"EXTENSION_MAP = '{HOOKS[age]}'")
    user = folder / "user_data" if age == "C" else folder
    (user / "extensions").mkdir(parents=True)
    (user / "models").mkdir()
    if age != "A":
        (user / "instruction-templates").mkdir()
    return folder


def language(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    shape = {"model_type": "llama", "hidden_size": 8, "vocab_size": 9, **config}
    (folder / "config.json").write_text(json.dumps(shape))
    save_file({"x": zeros(1)}, folder / "model.safetensors")
    return folder


def todos(root: Path, name: str = "llava") -> list[str]:
    return [finding.seen for finding in check(WebUI(root, name)) if not finding.good]


@pytest.mark.parametrize(
    ("age", "place"), [("A", "extensions/llava"), ("B", "extensions/llava"), ("C", "user_data/extensions/llava")]
)
def test_the_script_and_a_copy_of_the_package_go_where_the_host_looks(tmp_path: Path, age: str, place: str) -> None:
    steps = list(install(WebUI(host(tmp_path / "host", age))))
    folder = tmp_path / "host" / place
    assert (folder / "script.py").read_bytes() == SCRIPT.read_bytes()
    assert (folder / "trifocal" / "webui" / "hooks.py").is_file()
    assert (folder / "trifocal" / "thimble" / "config.json").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert any(str(folder / "script.py") in step for step in steps)
    assert "--extensions llava" in steps[-1]


def test_the_copy_works_by_itself_without_trifocal_installed(tmp_path: Path) -> None:
    list(install(WebUI(host(tmp_path / "host", "C"))))
    script = tmp_path / "host" / "user_data" / "extensions" / "llava" / "script.py"
    program = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('user_ext_llava', {str(script)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "import trifocal\n"
        "print(trifocal.__file__, sorted(module.params)[:2], hasattr(module, 'tokenizer_modifier'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"HOME": "/"},
        timeout=PATIENCE,
    )
    assert ran.stdout.startswith(str(script.parent))
    assert ran.stdout.strip().endswith("['add_all_images_to_prompt', 'allow_pickle'] True")


def test_installing_again_updates_and_another_s_script_is_kept(tmp_path: Path) -> None:
    folder = host(tmp_path / "host", "A") / "extensions" / "llava"
    folder.mkdir()
    (folder / "script.py").write_text("# the host's own, of 2023")
    list(install(WebUI(tmp_path / "host")))
    assert (folder / "script.py.before-trifocal").read_text() == "# the host's own, of 2023"
    (folder / "trifocal" / "stale.py").write_text("")
    (folder / "script.py").write_text(SCRIPT.read_text() + "# older")
    list(install(WebUI(tmp_path / "host")))
    assert (folder / "script.py").read_bytes() == SCRIPT.read_bytes()
    assert not (folder / "trifocal" / "stale.py").exists()
    assert (folder / "script.py.before-trifocal").read_text() == "# the host's own, of 2023"


def test_a_template_of_the_user_s_own_is_not_overwritten(tmp_path: Path) -> None:
    place = host(tmp_path / "host", "C") / "user_data" / "instruction-templates"
    (place / "LLaVA-v1.yaml").write_text("mine")
    list(install(WebUI(tmp_path / "host")))
    assert (place / "LLaVA-v1.yaml").read_text() == "mine"
    assert sorted(file.stem for file in place.glob("*.yaml")) == sorted(INSTRUCTIONS)


FLAGS = {  # as the hosts define them, and what reads their file of flags
    "A": ("parser.add_argument('--model', type=str)\nparser.add_argument('--extensions', nargs='+')", None),
    "May": ('parser.add_argument("--model_type")\n# --loader is not known yet', "server.py"),
    "B": ("group.add_argument('--loader', type=str, help='Choose')", "one_click.py"),
    "C": ("group.add_argument('--loader', type=str)\ncmd_flags_path = user_data_dir / 'CMD_FLAGS.txt'", None),
}


@pytest.mark.parametrize("age", FLAGS)
def test_only_flags_that_this_host_knows_are_named(tmp_path: Path, age: str) -> None:
    root = host(tmp_path / "host", "A" if age == "May" else age)
    defined, reader = FLAGS[age]
    (root / "modules" / "shared.py").write_text(defined)
    if reader:
        (root / reader).write_text("path = 'CMD_FLAGS.txt'")
    told = "\n".join([*install(WebUI(root)), *map(str, check(WebUI(root)))])
    assert ("--loader" in told) is (age in "BC")
    assert ("CMD_FLAGS" in told) is (age != "A")
    assert "--extensions llava" in told
    if age == "C":
        assert str(root / "user_data" / "CMD_FLAGS.txt") in told


@pytest.mark.parametrize("name", ["../llava", "", "a b", "a-b"])
def test_a_name_that_is_no_folder_s_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="an extension's name is letters, digits and _"):
        WebUI(host(tmp_path / "host", "C"), name)


def test_a_folder_that_is_no_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no text-generation-webui"):
        WebUI(tmp_path)


@pytest.mark.parametrize("age", ["A", "B", "C"])
def test_a_fresh_host_is_told_all_that_is_missing(tmp_path: Path, age: str) -> None:
    missing = todos(host(tmp_path / "host", age))
    assert any("script.py is not there" in seen for seen in missing)
    assert any("no start flag" in seen for seen in missing)
    assert any("holds no model" in seen for seen in missing)
    assert any("templates not there" in seen for seen in missing) == (age != "A")


def test_a_host_with_all_in_place_has_nothing_to_do(tmp_path: Path) -> None:
    root = host(tmp_path / "host", "C")
    list(install(WebUI(root)))
    (root / "user_data" / "CMD_FLAGS.txt").write_text("# flags\n--loader Transformers --extensions gallery llava --api")
    split(find_checkpoint("thimble"), tmp_path / "apart")
    (root / "user_data" / "models" / "mine").symlink_to(tmp_path / "apart" / "language")
    assert todos(root) == []
    ran = CliRunner().invoke(extension, ["check", "--webui", str(root)])
    assert ran.exit_code == 0
    assert f"Trifocal {__version__}" in ran.output


@pytest.mark.parametrize(
    "settings", ["default_extensions:\n- gallery\n- llava\n", '{"default_extensions": ["gallery", "llava"]}']
)
def test_settings_may_switch_it_on(tmp_path: Path, settings: str) -> None:
    root = host(tmp_path / "host", "B")
    (root / ("settings.yaml" if settings.startswith("default") else "settings.json")).write_text(settings)
    assert not any("no start flag" in seen for seen in todos(root))


def test_a_flag_of_another_extension_does_not_switch_it_on(tmp_path: Path) -> None:
    root = host(tmp_path / "host", "B")
    (root / "CMD_FLAGS.txt").write_text("--extensions gallery --model llava\n# --extensions llava")
    assert any("no start flag" in seen for seen in todos(root))


def test_an_older_script_or_package_is_found(tmp_path: Path) -> None:
    root = host(tmp_path / "host", "C")
    list(install(WebUI(root)))
    package = root / "user_data" / "extensions" / "llava" / "trifocal" / "__init__.py"
    package.write_text(package.read_text().replace(__version__, "0.0.1"))
    assert any("holds Trifocal 0.0.1" in seen for seen in todos(root))
    (package.parents[1] / "script.py").write_text("# trifocal.webui of long ago")
    assert any(f"is not that of Trifocal {__version__}" in seen for seen in todos(root))


def test_another_loader_in_the_flags_is_found(tmp_path: Path) -> None:
    root = host(tmp_path / "host", "C")
    (root / "user_data" / "CMD_FLAGS.txt").write_text("--loader llama.cpp")
    assert any("loader llama.cpp" in seen for seen in todos(root))


def test_each_model_is_looked_at(tmp_path: Path) -> None:
    models = host(tmp_path / "host", "C") / "user_data" / "models"
    language(models / "refused", model_type="llava")
    language(models / "unknown")
    language(models / "v0", hidden_size=5120, vocab_size=32003)
    language(models / "tells", mm_vision_tower="x")
    language(models / "tiny", hidden_size=256, vocab_size=3072)
    (language(models / "empty") / "model.safetensors").unlink()
    (language(models / "broken") / "config.json").write_text("{")
    seen = {finding.seen.split(":")[0].split(" ")[0]: finding for finding in check(WebUI(tmp_path / "host"))}
    assert "convert split" in seen["refused"].todo
    assert "llava-checkpoint" in seen["unknown"].todo
    assert "openai/clip-vit-large-patch14, liuhaotian/LLaVA-13b-delta-v0/mm_projector.bin" in seen["v0"].seen
    assert seen["tells"].good
    assert seen["tiny"].good
    assert "no weights" in seen["empty"].seen
    assert "can't be read" in seen["broken"].seen


def test_the_commands_say_what_they_did_and_end_with_1_when_something_is_missing(tmp_path: Path) -> None:
    root = host(tmp_path / "host", "C")
    ran = CliRunner().invoke(extension, ["install", "--webui", str(root), "--name", "multimodal"])
    assert ran.exit_code == 0
    assert (root / "user_data" / "extensions" / "multimodal" / "script.py").is_file()
    ran = CliRunner().invoke(extension, ["check", "--webui", str(root), "--name", "multimodal"])
    assert ran.exit_code == 1
    assert "todo  no start flag or setting switches multimodal on" in ran.output


def rendered(name: str, messages: list[dict[str, str]], **more: Any) -> str:
    """As the host renders: a sandboxed environment with trimmed blocks."""
    text = yaml.safe_load(instruction_template(TEMPLATES[name]))["instruction_template"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    result: str = environment.from_string(text).render(messages=messages, **{"add_generation_prompt": True, **more})
    return result


@pytest.mark.parametrize("name", sorted(set(INSTRUCTIONS.values())))
def test_instruction_templates_write_what_our_own_do(name: str) -> None:
    turns = [("user", "Question 1?"), ("assistant", "Answer 1."), ("user", 'It\'s "2"?\n')]
    ours = TEMPLATES[name].render([Message(role, text) for role, text in turns])  # type: ignore[arg-type]
    text = "".join(piece.name if isinstance(piece, Control) else str(piece) for piece in ours)
    messages = [{"role": role, "content": content} for role, content in turns]
    assert rendered(name, messages) == text
    assert rendered(name, messages, bos_token="<s>") == f"<s>{text}"
    assert rendered(name, messages, add_generation_prompt=False) == text.removesuffix(TEMPLATES[name].answer)


@pytest.mark.parametrize("name", sorted(set(INSTRUCTIONS.values())))
def test_a_system_text_of_the_user_s_own_takes_the_place_of_the_family_s(name: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = rendered(name, messages)
    assert "Be brief." in text
    assert text.index("Be brief.") < text.index("Hello")
    assert TEMPLATES[name].system[:30] not in text
