"""Writes the lock anew: every version and hash that `make run` and `make test` install.

Torch is resolved apart, since its CPU build has an index of its own and its CUDA build brings many packages that the
CPU build does not need. Run it with `make lock`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA = ("torch==", "triton==", "nvidia-", "cuda-")  # what the CPU build does not need
BUILD = ["hatchling", "editables"]  # what an editable install without build isolation needs


def compile_lock(name: str, *extras: str, against: str | None = None) -> None:
    """Resolves the project with some extras, for every system and Python, and writes ``name``.lock with hashes."""
    out = HERE / f"{name}.lock"
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "-", "--generate-hashes"]
    command += ["--universal", "--python-version", "3.11", "--no-header", "--no-annotate", "--quiet"]
    for extra in extras:
        command += ["--extra", extra]
    if against:
        command += ["--constraint", str(HERE / f"{against}.lock")]
    command += ["--output-file", str(out), "--upgrade"]
    wanted = "\n".join([*BUILD, TORCH])
    subprocess.run(command, input=wanted, text=True, check=True, cwd=HERE.parent)
    out.write_text(without(out.read_text(), CUDA))
    print(f"{out.name}: {sum('==' in line for line in out.read_text().splitlines())} packages")


def without(lock: str, beginnings: tuple[str, ...]) -> str:
    """A lock without the packages whose lines begin so, and their hashes."""
    kept, drop = list[str](), False
    for line in lock.splitlines(keepends=True):
        drop = line.startswith(beginnings) if not line[0].isspace() else drop
        kept += [] if drop else [line]
    return "".join(kept)


def named(lock: str) -> list[str]:
    """The packages of a lock."""
    lines = (HERE / f"{lock}.lock").read_text().splitlines()
    return [line.split("==")[0].split("[")[0] for line in lines if line[:1].isalnum()]


def compile_clients() -> None:
    """Resolves the clients of tests/clients by themselves: they agree with each other, not with us."""
    folder = HERE.parent / "tests" / "clients"
    command = [sys.executable, "-m", "uv", "pip", "compile", "requirements.in", "--generate-hashes", "--upgrade"]
    command += ["--python-version", "3.11", "--no-header", "--no-annotate", "--quiet"]
    subprocess.run([*command, "--output-file", "requirements.txt"], check=True, cwd=folder, stdout=subprocess.DEVNULL)


def compile_engine(name: str, *, leave_out: tuple[str, ...] = (), against: str | None = None, index: str = "") -> None:
    """Resolves what an engine of tests/engines_real needs; ``leave_out`` is there already, as ``against`` has it.

    ``index`` is asked beside the usual one, unless ``UV_FIND_LINKS`` says where its wheels lie.
    """
    folder = HERE.parent / "tests" / "engines_real"
    command = [sys.executable, "-m", "uv", "pip", "compile", f"{name}.in", "--generate-hashes", "--upgrade"]
    command += ["--python-version", "3.11", "--no-header", "--no-annotate", "--quiet"]
    for package in leave_out:
        command += ["--no-emit-package", package]
    if against:
        command += ["--constraint", str(HERE / f"{against}.lock")]
    if index and "UV_FIND_LINKS" not in os.environ:
        command += ["--extra-index-url", index, "--index-strategy", "unsafe-best-match"]
    subprocess.run([*command, "--output-file", f"{name}.txt"], check=True, cwd=folder, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    compile_lock("run", "serve")
    compile_lock("test", "serve", "test", "test-api", "test-page", against="run")
    compile_clients()
    shared = ("jinja2", "markupsafe", "numpy", "typing-extensions")
    compile_engine("uv")  # which installs what the others need
    compile_engine("llamacpp", leave_out=shared, against="run")
    compile_engine("ray", leave_out=tuple(named("test")), against="test")
    # what vLLM asks for and a language model on a CPU does not need: none of the first three imports beside our torch
    compile_engine("vllm", leave_out=("torchaudio", "torchcodec", "torchvision", "triton", "torch"), index=CPU_INDEX)
