"""vLLM for real, in this process and behind a server of its own: the reference's ids, many callers, no mix-ups."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from safetensors.torch import save_file

import needs
import trifocal
from trifocal import Llava, Message, PeerError, PromptTooLong, Sampling, UsageError
from trifocal.engines.language import open_language
from trifocal.engines.recipe import Recipe
from trifocal.images import Image
from waiting import PATIENCE, until

pytestmark = needs.engine("vllm", "vllm")
KEY = "a-key-of-the-server-behind"
FEW = Sampling(max_tokens=24)
Draw = Callable[..., Image]


def _language(folder: Path) -> Path:
    """The language half of the bundled model, as anybody's folder of a plain language model."""
    home = Path(trifocal.__file__).parent / "thimble"
    whole = json.loads((home / "config.json").read_text())
    config = whole.get("text_config", whole)
    weights = open_language(Recipe(source=str(home), config=config)).weights
    save_file({name: weights[name].float().contiguous() for name in weights}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    for file in home.glob("token*"):
        shutil.copy(file, folder)
    return folder


class Server:
    """vLLM's own server in a process group of its own."""

    def __init__(self, folder: Path, *more: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
        command += ["--api-key", KEY, "--max-logprobs", "20", "--served-model-name", "half", *more]
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)
        self.killed = False

    def wait(self) -> None:
        """Until it answers."""
        until(lambda: self._answers() or self.process.poll() is not None, "vLLM's server")
        assert self.process.poll() is None, "vLLM's server ended"

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Ends it and what it started, of which some may live where it has ended itself."""
        if not self.killed:  # once: by then another's group may bear the number
            self.killed = True
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(_language(tmp_path_factory.mktemp("half")), "--enable-prompt-embeds")
    try:
        found.wait()
        yield found
    finally:
        found.kill()


@pytest.fixture(scope="module")
def reference() -> Iterator[Llava]:
    with trifocal.load(engine="transformers", language="cpu/float32") as llava:
        yield llava


@pytest.fixture(scope="module", params=["here", "there"])
def llava(request: pytest.FixtureRequest) -> Iterator[Llava]:
    if request.param == "here":
        options: dict[str, object] = {"kv_gib": 0.5}
    else:
        options = {"url": request.getfixturevalue("server").url, "key": KEY}
    with trifocal.load(engine="vllm", language="cpu/float32", engine_options=options) as loaded:
        yield loaded


def ids(llava: Llava, question: Message, sampling: Sampling = FEW, scope: str = "") -> list[int]:
    asked = llava.prepare(llava.write([question]), sampling, scope=scope)
    with closing(llava.engine.stream(asked.prompt, asked.sampling)) as tokens:
        return [token.id for token in tokens]


@pytest.mark.short
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_the_reference_s_ids(llava: Llava, reference: Llava, drawn: Draw, pictures: int) -> None:
    question = llava.question("What is in the picture?", [drawn(seed, 64, 64) for seed in range(pictures)])
    wanted = ids(reference, question)
    assert wanted
    assert ids(llava, question) == wanted
    assert ids(llava, question) == wanted, "and again, from what was kept of it"
    past = Sampling(max_tokens=40, ignore_end=True)
    assert ids(llava, question, past) == ids(reference, question, past)


@pytest.mark.short
def test_two_pictures_are_never_taken_for_each_other(llava: Llava, reference: Llava, drawn: Draw) -> None:
    words = "Describe the picture in detail."
    questions = [llava.question(words, [drawn(seed, 64, 64)]) for seed in (1, 2)]
    both = [llava.question(words, [drawn(first, 64, 64), drawn(second, 64, 64)]) for first, second in ((1, 2), (2, 1))]
    wanted = [ids(reference, question) for question in (*questions, *both)]
    for _ in range(3):
        assert [ids(llava, question, scope="a") for question in (*questions, *both)] == wanted
    assert ids(llava, questions[0], scope="b") == wanted[0]


def test_64_callers_get_what_each_alone_gets(llava: Llava, drawn: Draw) -> None:
    questions = [llava.question(f"What is number {at}?", [drawn(at % 16, 64, 64)]) for at in range(64)]
    wanted = [ids(llava, question) for question in questions]
    found: dict[int, list[int]] = {}

    def one(at: int) -> None:
        found[at] = ids(llava, questions[at])

    threads = [threading.Thread(target=one, args=(at,)) for at in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [found.get(at) for at in range(64)] == wanted
    assert llava.state().running == 0


def test_drawn_answers(llava: Llava) -> None:
    question = llava.question("Say something.")
    some = Sampling(max_tokens=16, temperature=1.5, seed=7, top_k=20, top_p=0.9, min_p=0.01)
    assert ids(llava, question, some) == ids(llava, question, some)
    assert (
        len({tuple(ids(llava, question, Sampling(max_tokens=16, temperature=1.5, seed=seed))) for seed in range(4)}) > 1
    )


def test_log_probabilities(llava: Llava, reference: Llava, drawn: Draw) -> None:
    question = llava.question("What is it?", [drawn(3, 64, 64)])
    sampling = Sampling(max_tokens=6, top_logprobs=3)
    here, there = (
        [token for chunk in each.stream([question], sampling) for token in chunk.logprobs]
        for each in (llava, reference)
    )
    assert [token.text for token in here] == [token.text for token in there]
    assert [token.logprob for token in here] == pytest.approx([token.logprob for token in there], abs=1e-3)
    assert [len(token.top) for token in here] == [3] * len(here)


@pytest.mark.short
def test_a_stream_that_is_left_ends_there(llava: Llava, drawn: Draw) -> None:
    question = llava.question("Tell a story.", [drawn(4, 64, 64)])
    for _ in range(20):
        with closing(llava.stream([question], Sampling(max_tokens=400, temperature=1.0))) as chunks:
            next(chunks)
    until(lambda: llava.state().running == 0, "the end of what was left")
    assert ids(llava, question)


@pytest.mark.short
def test_what_does_not_fit_is_refused(llava: Llava) -> None:
    with pytest.raises(PromptTooLong):
        llava.complete([Message("user", "word " * (llava.context + 1))])
    with pytest.raises(UsageError, match="can't tell where it looks"):
        llava.explain([Message("user", "Hi"), Message("assistant", "Yes.")])


@pytest.mark.short
def test_a_schema(llava: Llava) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    held = Sampling(max_tokens=24, schema=json.dumps(schema))
    if llava.engine.able.grammar:
        text = llava.complete([llava.question("A number?")], held).text  # vLLM's grammar lets white space grow
        assert text.startswith("{")
        assert '{"n":7}'.startswith("".join(text.split()))
    else:
        with pytest.raises(trifocal.BadSampling, match="can't hold"):
            llava.complete([llava.question("A number?")], held)


@pytest.mark.short
def test_a_server_that_is_not_the_one(llava: Llava, server: Server, hf15: Path) -> None:
    if llava.engine_name != "served":
        return
    with pytest.raises(PeerError, match="does not let us in"):
        trifocal.load(engine="vllm", engine_options={"url": server.url, "key": "wrong"})
    with pytest.raises(UsageError, match=r"takes no embeddings of this model|another language model"):
        trifocal.load(checkpoint=str(hf15), engine="vllm", engine_options={"url": server.url, "key": KEY})


@pytest.mark.short
def test_a_server_that_dies(server: Server, llava: Llava) -> None:
    """The last one: it takes the server away."""
    if llava.engine_name != "served":
        return
    # the engine's own tokens: a story of words may have ended with its turn before the server is killed
    long = Sampling(max_tokens=3000, ignore_end=True)
    asked = llava.prepare(llava.write([llava.question("Tell a story.")]), long)
    with closing(llava.engine.stream(asked.prompt, asked.sampling)) as tokens:
        next(tokens)
        server.kill()
        with pytest.raises(PeerError, match="in the middle"):
            for _ in tokens:
                pass
    with pytest.raises(PeerError, match="can't be asked"):
        llava.complete([llava.question("Hi")])
    assert llava.state().phase == "failed"
