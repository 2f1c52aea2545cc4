"""What stands on a terminal beside an answer: nothing, whatever family was loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from PIL import Image as Pictures
from transformers.utils import logging

from checkpoint_maker import V0
from foreign_models import FOREIGN, make_foreign
from layouts import family, save_original
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.engines.transformers.loading import Loaded
from trifocal.quiet import quiet
from waiting import PATIENCE

# loads each folder, lays a picture out and answers, as a program of one's own does
PROGRAM = """
import sys
from trifocal import Sampling, load, open_image
from trifocal.vision.transformers.processors import count
for folder in sys.argv[2:]:
    places = dict(zip(("checkpoint", "tower_from", "projector_from"), folder.split(";")))
    with load(template="llava_v1", **places) as llava:
        question = llava.question("what is it", [open_image(sys.argv[1])])
        llava.complete([question], Sampling(max_tokens=2))
        if "foreign-" in folder:
            count(llava.checkpoint.language.source, 90, 60)
    print(folder, flush=True)
"""


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRANSFORMERS"))}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_every_family_loads_and_answers_without_a_word(hf15: Path, v0: V0, tmp_path: Path) -> None:
    Pictures.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "picture.png")
    folders = [str(hf15), ";".join(map(str, (v0.language, v0.tower, v0.projector)))]
    for name in ("1.6-mistral", "onevision"):
        folders.append(str(save_original(family(name), tmp_path / name)))
    odd = {"do_sample": False, "temperature": 0.9, "max_length": 4096}  # of which transformers says that it is odd
    (tmp_path / "onevision" / "generation_config.json").write_text(json.dumps(odd))
    folders.append(str(save_original(family("mpt"), tmp_path / "mpt", tower=tmp_path / "mpt-tower")))
    for kind in FOREIGN:
        make_foreign(kind, tmp_path / f"foreign-{kind}")
        folders.append(str(tmp_path / f"foreign-{kind}"))
    done = run("-c", PROGRAM, str(tmp_path / "picture.png"), *folders)
    assert done.stderr == ""
    assert done.stdout.split("\n") == [*folders, ""]


@pytest.mark.parametrize(("options", "told"), [((), False), (("-W", "default"), True)])
def test_advice_to_programmers_is_not_for_who_asks(options: tuple[str, ...], told: bool) -> None:
    program = (
        "import sys, warnings, trifocal.cli as there; sys.argv[1:] = []\n"
        "there.cli.main = lambda **_: warnings.warn('old name', FutureWarning)\nthere.main()"
    )
    done = run(*options, "-c", program)
    assert ("old name" in done.stderr) == told
    assert told or done.stderr == ""


def test_what_was_set_before_is_set_again() -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        with quiet():
            with pytest.raises(ValueError, match="inside"), quiet():
                raise ValueError("inside")
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, before[1])
    finally:
        logging.set_verbosity(before[0])


def test_keys_and_values_go_by_the_name_that_the_model_has_for_them() -> None:
    def renamed(function: object) -> object:
        def taking(*given: object, **named: object) -> None:
            warnings.warn("`past_key_values` is deprecated", FutureWarning, stacklevel=2)

        taking.__wrapped__ = function  # type: ignore[attr-defined]  # as functools.wraps leaves it
        return taking

    def newer(inputs_embeds: torch.Tensor, cache: object = None) -> None: ...
    def older(inputs_embeds: torch.Tensor, past_key_values: object = None) -> None: ...

    def loaded(forward: object) -> Loaded:
        return Loaded(SimpleNamespace(forward=forward), cast(FileTokenizer, None), 8, frozenset(), "causal")

    assert loaded(renamed(newer)).keeping(1) == {"cache": 1}
    assert loaded(older).keeping(1) == {"past_key_values": 1}
