"""Engines over heavy libraries, tested for real: ``python run.py [NAME ...]`` installs each and runs its tests.

One environment an engine, beside the one that runs this (``.venv-engines/NAME``); ``NAME.in`` are the packages,
``NAME.txt`` their versions and hashes (`make lock`). What had to be built is kept in a cache of this user, so that the
next run does not build it again. There nothing is skipped for want of the engine: `needs.engine` fails instead.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = ROOT / "requirements" / "torch.lock"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trifocal-tests"

PATIENCE = "400"  # seconds: on a machine with other work a cluster, or a large library, takes minutes to start


@dataclass(frozen=True, slots=True)
class Environment:
    """What an engine's tests are run in.

    ``tests`` are pytest's arguments. A ``shared`` one sees the packages of the environment that runs this, and
    ``NAME.txt`` has only what comes on top; another has all in ``NAME.txt``. ``built`` are packages without a wheel of
    their own. One that is not shared has a torch of its own, ours of requirements/torch.lock, and ``stands_for`` are
    packages under whose name an engine looks for itself though another one brought it.
    """

    tests: tuple[str, ...]
    shared: bool = True
    built: tuple[str, ...] = ()
    stands_for: tuple[str, ...] = ()


ENGINES = {
    "llamacpp": Environment(
        ("tests/engines", "tests/test_real_language.py", "-k", "llamacpp or llama_cpp"),
        built=("llama-cpp-python",),
    ),
    "ray": Environment(("tests/deploy", "-W", "default", "--disable-warnings")),  # its warnings are not ours to mend
    "vllm": Environment(
        (
            "tests/engines/test_vllm.py",
            "tests/engines/test_served.py",
            "-W",
            "default",
        ),  # the warnings of its libraries are not ours to mend
        shared=False,
        stands_for=("vllm==0.32.0+cpu",),
    ),
}


def main(names: list[str]) -> int:
    """Runs the tests of these engines, of all where none is named; 1 where any of them failed."""
    failed = []
    for name in names or list(ENGINES):
        began = time.monotonic()
        python = installed(name, ENGINES[name])
        ready = time.monotonic()
        command = [str(python), "-m", "pytest", "-p", "no:xdist", *ENGINES[name].tests]
        told = {"TRIFOCAL_PATIENCE": PATIENCE, **os.environ, "TRIFOCAL_ENGINE": name}
        ended = subprocess.run(command, cwd=ROOT, env=told, check=False)
        failed += [name] * bool(ended.returncode)
        print(f"{name}: installed in {ready - began:.0f} s, tested in {time.monotonic() - ready:.0f} s", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    return bool(failed)


def installed(name: str, environment: Environment) -> Path:
    """The Python of an engine's environment, which is made where it is not there."""
    folder = Path(f"{sys.prefix}-engines") / name
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", str(folder))
    if environment.shared:
        own, ours = site(python), site(Path(sys.executable))
        (own / "shared.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")  # with its editable ones
    pinned = requirements(HERE / f"{name}.txt")
    wheels = [str(built(package, pinned.pop(package), folder)) for package in environment.built]
    plain = folder / "requirements.txt"
    plain.write_text("\n".join(pinned.values()))
    pip = (str(python), "-m", "pip", "install", "-q", "--no-deps")
    if not environment.shared:
        run(*pip, "--require-hashes", "--extra-index-url", CPU_INDEX, "--retries", "1", "-r", str(TORCH))
    if pinned:
        run(*pip, "--require-hashes", "-r", str(plain))
    if wheels:
        run(*pip, *wheels)
    if not environment.shared:
        run(*pip, "--no-build-isolation", "-e", str(ROOT))
    for package in environment.stands_for:
        name, version = package.split("==")
        told = site(python) / f"{name}-{version}.dist-info"
        told.mkdir(exist_ok=True)
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return python


def requirements(file: Path) -> dict[str, str]:
    """Package to its lines: a version and the hashes."""
    found: dict[str, str] = {}
    for line in file.read_text("utf-8").splitlines():
        if line[:1].isalnum():
            name = line.split("==")[0]
            found[name] = line
        elif line.startswith(" "):
            found[name] += f"\n{line}"
    return found


def built(package: str, pinned: str, folder: Path) -> Path:
    """The wheel of a package that has none of its own; what it is built of is checked against the hashes."""
    version = pinned.split("==")[1].split()[0]
    wheels = CACHE / "wheels" / machine()
    name = f"{package.replace('-', '_')}-{version}-*.whl"
    if not any(wheels.glob(name)):
        print(f"building {package} {version}: minutes, once", flush=True)
        asked = folder / f"{package}.txt"
        asked.write_text(pinned)
        pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-binary", package)
        run(*pip, "--require-hashes", "-w", str(wheels), "-r", str(asked))
    return next(wheels.glob(name))


def site(python: Path) -> Path:
    """Where an environment's packages lie."""
    told = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", told], capture_output=True, text=True, check=True).stdout.strip())


def machine() -> str:
    """What a wheel built here is good for: this system and the abilities of its processor, for which it is built."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    abilities = hashlib.sha256(flags.encode()).hexdigest()[:12]
    return f"{platform.system()}-{platform.machine()}-{abilities}".lower()


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
