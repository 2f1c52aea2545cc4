"""Engines over heavy libraries, tested for real: ``python run.py [NAME ...]`` installs each and runs its tests.

One environment an engine, beside the one that runs this (``.venv-engines/NAME``); ``NAME.in`` are the packages,
``NAME.txt`` their versions and hashes (`make lock`). What had to be built is kept in a cache of this user, so that the
next run does not build it again. There nothing is skipped for want of the engine: `needs.engine` fails instead.
``--short`` runs what CI has minutes for: of an engine that has a short form, its tests that bear the mark `short`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trifocal-tests"

PATIENCE = "400"  # seconds: on a machine with other work a cluster, or a large library, takes minutes to start


@dataclass(frozen=True, slots=True)
class Environment:
    """What an engine's tests are run in: its own packages, and behind them those of the environment that runs this.

    ``tests`` are pytest's arguments; with a ``short`` form, some of them bear that mark. ``built`` are packages without
    a wheel of their own. ``stands_for`` are packages under whose name an engine looks for itself though another one
    brought it.
    """

    tests: tuple[str, ...]
    short: bool = False
    built: tuple[str, ...] = ()
    stands_for: tuple[str, ...] = ()


NOT_OURS = ("-W", "default", "--disable-warnings")  # the warnings of large libraries are not ours to mend

ENGINES = {
    "llamacpp": Environment(
        ("tests/engines", "tests/test_real_language.py", "-k", "llamacpp or llama_cpp"),
        built=("llama-cpp-python",),
    ),
    "ray": Environment(("tests/deploy", *NOT_OURS), short=True),
    "vllm": Environment(
        ("tests/engines/test_vllm.py", "tests/engines/test_served.py", *NOT_OURS),
        short=True,
        stands_for=("vllm==0.32.0+cpu",),
    ),
}


def main() -> int:
    """Runs the tests of the named engines, of all where none is named; 1 where any of them failed."""
    parser = argparse.ArgumentParser(description="tests of engines over heavy libraries")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENGINES))
    parser.add_argument("--short", action="store_true", help="what CI runs of them")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(ENGINES):
        parser.error(f"no engine is called {', '.join(sorted(unknown))}; known: {', '.join(ENGINES)}")
    failed = []
    for name in asked.names or list(ENGINES):
        began = time.monotonic()
        python = installed(name, ENGINES[name])
        ready = time.monotonic()
        failed += [name] * tested(name, python, short=asked.short)
        print(f"{name}: installed in {ready - began:.0f} s, tested in {time.monotonic() - ready:.0f} s", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    return bool(failed)


def tested(name: str, python: Path, *, short: bool) -> bool:
    """Whether its tests failed."""
    chosen = ("-m", "short") if short and ENGINES[name].short else ()
    command = [str(python), "-m", "pytest", "-p", "no:xdist", *ENGINES[name].tests, *chosen]
    told = {"TRIFOCAL_PATIENCE": PATIENCE, **os.environ, "TRIFOCAL_TESTED": name}
    told["PYTHONDONTWRITEBYTECODE"] = ""  # uv leaves compiling to who imports first: not each of a dozen processes
    return bool(subprocess.run(command, cwd=ROOT, env=told, check=False).returncode)


def installed(name: str, environment: Environment) -> Path:
    """The Python of an engine's environment, which is made where it is not there."""
    folder = Path(f"{sys.prefix}-engines") / name
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    own, ours = site(python), site(Path(sys.executable))
    (own / "shared.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")  # with its editable ones
    pinned = requirements(HERE / f"{name}.txt")
    wheels = [str(built(package, pinned.pop(package), folder)) for package in environment.built]
    if missing := [told for package, told in pinned.items() if not here(package, told)]:
        plain = folder / "requirements.txt"
        plain.write_text("\n".join(missing))
        fetch(python, plain)
    if wheels:
        run(*pip(python), *wheels)
    for package in environment.stands_for:
        name, version = package.split("==")
        told = own / f"{name}-{version}.dist-info"
        told.mkdir(exist_ok=True)
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return python


def here(package: str, pinned: str) -> bool:
    """Whether the environment that runs this has a package in this very version."""
    try:
        return importlib.metadata.version(package) == version_of(pinned)
    except importlib.metadata.PackageNotFoundError:
        return False


def fetch(python: Path, plain: Path) -> None:
    """Installs what a file pins.

    uv does it in a fifth of pip's time. Where it can't, since it knows nothing of pip's settings, pip does.
    """
    run(*pip(python), "--require-hashes", "-r", str(HERE / "uv.txt"))
    uv = (str(python), "-m", "uv", "pip", "install", "-q", "--system-certs", "--python", str(python), "--no-deps")
    by_uv = subprocess.run([*uv, "--require-hashes", "-r", str(plain)], check=False)
    if by_uv.returncode:
        print("uv could not install that: pip does", flush=True)
        run(*pip(python), "--require-hashes", "-r", str(plain))


def pip(python: Path) -> tuple[str, ...]:
    """What installs into another environment, which has no pip of its own."""
    return (sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps")


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


def version_of(pinned: str) -> str:
    return pinned.split("==")[1].split()[0]


def built(package: str, pinned: str, folder: Path) -> Path:
    """The wheel of a package that has none of its own; what it is built of is checked against the hashes."""
    version = version_of(pinned)
    wheels = CACHE / "wheels" / machine()
    name = f"{package.replace('-', '_')}-{version}-*.whl"
    if not any(wheels.glob(name)):
        print(f"building {package} {version}: minutes, once", flush=True)
        asked = folder / f"{package}.txt"
        asked.write_text(pinned)
        wheel = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-binary", package)
        run(*wheel, "--require-hashes", "-w", str(wheels), "-r", str(asked))
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
    sys.exit(main())
