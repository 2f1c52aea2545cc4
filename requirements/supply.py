"""What Trifocal is made of: the licences of all locked packages, and a bill of materials.

``python requirements/supply.py licences`` prints a table and fails where a licence is not permitted; ``sbom`` prints
the bill of what `make run` installs. Run it with `make sbom` or `make licences`, where the packages are installed.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PERMITTED = frozenset(
    ("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0")
    + ("CNRI-Python", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib")
)
# what older packages say instead of an expression, in their classifiers or in words
SPELT = {
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# what is not installed everywhere
ELSEWHERE = {"colorama": "BSD-3-Clause", "httpx2-jsfetch": "BSD-3-Clause", "sentencepiece": "Apache-2.0"}


@dataclass(frozen=True)
class Package:
    """One locked package."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def licence(self) -> str:
        """As an SPDX expression; empty where nobody says it."""
        try:
            told = metadata.metadata(self.name)
        except metadata.PackageNotFoundError:
            return ELSEWHERE.get(self.name, "")
        kinds = [each.rpartition(" :: ")[2] for each in told.get_all("Classifier") or () if each.startswith("License")]
        words = told.get("License") or ""
        spelt = {SPELT[kind] for kind in (*kinds, words) if kind in SPELT}
        return str(told.get("License-Expression") or " AND ".join(sorted(spelt)) or (words if permitted(words) else ""))


def locked(*names: str) -> list[Package]:
    """The packages of some locks."""
    found = dict[tuple[str, str], Package]()
    for name in names:
        text = re.sub(r"^#.*\n", "", (HERE / f"{name}.lock").read_text(), flags=re.M)
        for block in re.split(r"\n(?=\S)", text.strip()):
            head = re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", block)
            assert head, block
            found[head.group(1, 2)] = Package(*head.groups(), tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block)))
    return list(found.values())


def permitted(expression: str) -> bool:
    """Whether one may choose permitted licences alone: of each ``OR`` one side, of each ``AND`` both."""
    words = expression.replace("(", " ").replace(")", " ")
    return bool(words.split()) and any(
        all(part.strip() in PERMITTED for part in choice.split(" AND ")) for choice in words.split(" OR ")
    )


def bill(packages: list[Package]) -> dict[str, Any]:
    """The bill of materials, without time or number: the same locks give the same bytes."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "trifocal", "bom-ref": "trifocal"}},
        "components": [
            {
                "type": "library",
                "bom-ref": f"pkg:pypi/{each.name}@{each.version}",
                "name": each.name,
                "version": each.version,
                "purl": f"pkg:pypi/{each.name}@{each.version}",
                "licenses": [{"expression": each.licence}],
                "hashes": [{"alg": "SHA-256", "content": hash} for hash in each.hashes],
            }
            for each in packages
        ],
    }


def refused(packages: list[Package]) -> list[str]:
    """What may not be in it, and why."""
    return [f"{each.name}: {each.licence or 'no licence'}" for each in packages if not permitted(each.licence)]


def main(what: str) -> int:
    """Prints the bill, or the table of licences."""
    if what == "sbom":
        print(json.dumps(bill(locked("torch", "run")), indent=1))
        return 0
    packages = locked("torch", "run", "test")
    for each in packages:
        print(f"{each.name:24} {each.version:14} {each.licence}")
    print(*refused(packages), sep="\n", file=sys.stderr)
    return len(refused(packages))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
