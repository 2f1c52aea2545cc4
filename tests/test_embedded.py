"""Pictures that came as embeddings: what is read, and all that is refused without being run."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import random
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import trifocal
from trifocal.embedded import MOST_ROWS, Embedded, embedded, from_base64, from_bytes
from trifocal.errors import BadImage
from trifocal.images import Limits

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def by_torch(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def by_hand(
    pickled: bytes, *, compress: int = zipfile.ZIP_STORED, storage: bytes = b"\0" * 128, **more: bytes
) -> bytes:
    """An archive as torch writes it, around a pickle that it did not write."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
        for name, held in more.items():
            archive.writestr(f"archive/{name}", held)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("write", [by_torch, lambda rows: save({"any": rows})])
def test_what_is_read_is_what_was_written(dtype: torch.dtype, write: Callable[[Any], bytes]) -> None:
    rows = ROWS.to(dtype)
    for given in (rows, rows[None], rows[1:3], rows.repeat(100, 1)):
        found = from_base64(base64.b64encode(write(given.clone())).decode())
        assert torch.equal(found.rows, given.reshape(-1, 8))
        assert found.rows.dtype == dtype
        assert found == embedded(given)


def test_a_part_of_a_larger_tensor_is_read_as_that_part() -> None:
    assert torch.equal(from_bytes(by_torch(ROWS[1:3])).rows, ROWS[1:3])
    with pytest.raises(BadImage, match="row by row"):
        from_bytes(by_torch(ROWS.t()))


def test_it_travels_with_its_identity_and_its_digest() -> None:
    sent = embedded(ROWS, identity="a tower")
    data = sent.to_safetensors()
    found = from_bytes(data)
    assert (found, found.identity) == (sent, "a tower")
    with pytest.raises(BadImage, match="another digest"):
        from_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert embedded(ROWS) != embedded(ROWS.half())
    assert embedded(ROWS) != embedded(ROWS.reshape(8, 4))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS.double(), "float64"),
        (ROWS.long(), "int64"),
        (ROWS.to(torch.complex64), "complex64"),
        (ROWS > 0, "bool"),
        (ROWS.to_sparse(), "dense"),
        (ROWS[0], r"not \[8\]"),
        (torch.zeros(2, 4, 8), "not"),
        (torch.zeros(0, 8), "not"),
        (torch.zeros(4, 0), "not"),
        (torch.zeros(1, 1).expand(MOST_ROWS + 1, 1), "up to"),
        (torch.tensor([[1.0, float("nan")]]), "finite"),
        (torch.tensor([[float("-inf")]]), "finite"),
    ],
)
def test_rows_that_are_none(rows: torch.Tensor, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        embedded(rows)
    with pytest.raises(BadImage):
        from_bytes(by_torch(rows))


def _runs() -> list[bytes]:
    """Pickles that do something when they are run."""
    reduces = [(eval, ("1",)), (exec, ("import os",)), (open, ("marker", "w")), (__import__, ("os",))]

    class Runs:
        def __init__(self, made: Any) -> None:
            self._made = made

        def __reduce__(self) -> Any:
            return self._made

    return [pickle.dumps(Runs(made), protocol) for made in reduces for protocol in (0, 1, 2, 4)]


FUNCTIONS = ("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_parameter", "posix system", "builtins eval")


def _hostile() -> list[bytes]:
    plain = zipfile.ZipFile(io.BytesIO(by_torch(ROWS)))
    name = next(each for each in plain.namelist() if each.endswith("data.pkl"))
    pickled = plain.read(name)
    held = ROWS.numpy().tobytes()
    rebuilt = b"torch._utils\n_rebuild_tensor_v2"
    swapped = [pickled.replace(rebuilt, "\n".join(each.split()).encode()) for each in FUNCTIONS]
    changed = [
        pickled.replace(b"FloatStorage", b"ByteStorage"),
        pickled.replace(b"K\x04K\x08", b"K\x04K\xff"),  # more columns than there are
        pickled.replace(b"K\x04K\x08", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f"),  # 2**62 of them
        pickled.replace(b"K\x04K\x08", b"J\xff\xff\xff\xffK\x08"),  # a side below 0
        pickled.replace(b"K\x00K\x04", b"K\xf0K\x04"),  # behind the storage
        pickled[:-1],
        pickled[:40],
        b"",
        b".",
        b"\x80\x02" + b"(" * 4000 + b".",
        pickled + b"x" * 5000,
        b"\x80\x02}q\x00.",
    ]
    whole = [by_hand(each, storage=held) for each in (*_runs(), *swapped, *changed)]
    return [
        *whole,
        by_hand(pickled, storage=held, compress=zipfile.ZIP_DEFLATED),
        by_hand(pickled, storage=held[:-4]),
        by_hand(pickled, storage=held + b"\0" * 4),
        by_hand(pickled, storage=held, byteorder=b"big"),
        by_hand(pickled, storage=held, **{f"more{at}": b"" for at in range(20)}),
        by_hand(pickled, storage=held, **{"x/data.pkl": pickled}),
        by_torch(ROWS, _use_new_zipfile_serialization=False),
        by_torch(OrderedDict(image_embeds=ROWS)),
        by_torch([ROWS]),
        by_torch(torch.nn.Parameter(ROWS)),
        b"PK",
        b"PK\x03\x04" + b"\0" * 100,
        pickled,
        b"",
        b"\x93NUMPY\x01\x00",
        *_safetensors(),
    ]


def _safetensors() -> list[bytes]:
    def file(head: Any, data: bytes = ROWS.numpy().tobytes(), size: int | None = None) -> bytes:
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        return (len(text) if size is None else size).to_bytes(8, "little") + text + data

    told = {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}
    return [
        file({}),
        file({"a": told, "b": told}),
        file({"a": {**told, "dtype": "F64"}}),
        file({"a": {**told, "dtype": "U8"}}),
        file({"a": {**told, "shape": [4, 9]}}),
        file({"a": {**told, "shape": [1 << 50, 8]}}),
        file({"a": {**told, "shape": [-4, -8]}}),
        file({"a": {**told, "shape": "48"}}),
        file({"a": {**told, "shape": [4.0, 8]}}),
        file({"a": {**told, "shape": [1] * 9}}),
        file({"a": {**told, "data_offsets": [0, 64]}}),
        file({"a": {**told, "data_offsets": [64, 128]}}),
        file({"a": told}, b"\0" * 64),
        file({"a": told}, size=1 << 62),
        file({"a": told}, size=100 << 20),
        file({"a": told, "__metadata__": {"trifocal": "[]"}}),
        file({"a": told, "__metadata__": {"trifocal": '{"identity": 1}'}}),
        file({"a": told, "__metadata__": 3}),
        file(b"[" * 60000),
        file(b"\xff\xfe"),
    ]


@pytest.mark.parametrize("data", _hostile())
def test_nothing_of_it_is_run(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadImage):
        from_bytes(data)  # what reading imports is imported
    seen: list[str] = []
    watching = [True]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching and event in ("exec", "open", "import", "pickle.find_class", "os.system", "subprocess.Popen"):
            seen.append(event)

    sys.addaudithook(watch)
    try:
        with pytest.raises(BadImage):
            from_bytes(data)
    finally:
        watching.clear()
    assert "pickle.find_class" not in seen
    assert not {"exec", "os.system", "subprocess.Popen"} & set(seen)
    assert list(tmp_path.iterdir()) == []


TRIES = 10_000 if os.environ.get("TRIFOCAL_FULL") == "1" else 400


@pytest.mark.parametrize("data", [by_torch(ROWS), save({"a": ROWS}), embedded(ROWS, identity="x").to_safetensors()])
def test_damage_is_refused_or_harmless(data: bytes) -> None:
    draw = random.Random(1)
    read = 0
    for _ in range(TRIES):
        hurt = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            hurt[draw.randrange(len(hurt))] = draw.randrange(256)
        hurt = hurt[: draw.randint(1, len(hurt))] if draw.random() < 0.2 else hurt
        try:
            found = from_bytes(bytes(hurt))
        except BadImage:
            continue
        read += 1
        assert found.rows.nbytes <= len(data)
        assert bool(torch.isfinite(found.rows).all())
    print(f"{TRIES} mutants, {read} were read")
    assert 0 < read < TRIES


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's own")
def test_what_is_declared_is_not_taken_and_threads_are_alone() -> None:
    """32 threads read what is hostile, and what declares 3.6 GB, at once: each is refused, without room being taken."""
    wide = torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (30_000, 30_000), check_invariants=True)
    bad = [by_torch(wide), by_torch(torch.zeros(1, 1).expand(30_000, 30_000)), *_hostile()]

    def refused(data: bytes) -> bool:
        with pytest.raises(BadImage):
            from_bytes(data)
        return True

    with ThreadPoolExecutor(32) as threads:
        assert all(threads.map(refused, bad))  # once, for what threads and modules take themselves
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmRSS")
        assert all(threads.map(refused, bad * 4))
        assert _memory("VmHWM") - before < 100 << 20


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def test_its_size_is_bounded_before_it_is_decoded() -> None:
    taken: list[int] = []
    limits = Limits(bytes=300, taking=taken.append)
    with pytest.raises(BadImage, match="allowed are 300"):
        from_base64("!" * 500, limits=limits)
    assert taken == []
    from_base64(base64.b64encode(save({"a": ROWS})).decode(), limits=limits)
    assert len(taken) == 1
    for text in ("!!!!", "AA\nAA", "AAAA-_", "A"):
        with pytest.raises(BadImage, match="base64"):
            from_base64(text)


def test_it_has_no_pixels() -> None:
    picture = embedded(ROWS)
    for act in (lambda: picture.width, lambda: picture.on((0, 0, 0)), lambda: picture.pixels.convert("RGB")):
        with pytest.raises(BadImage, match="no pixels"):
            act()


def test_a_model_answers_as_if_it_had_seen_the_picture() -> None:
    with trifocal.load() as llava:
        picture = trifocal.open_image("docs/example.png")
        (rows,) = llava.gallery.rows(llava.gallery.looks([picture]))
        sent = embedded(rows, identity=llava.gallery.vision.identity)
        there, here = (llava.complete([llava.question("What is it?", [each])]) for each in (picture, sent))
        assert here.text == there.text
        assert here.end.positions == there.end.positions
        assert (here.end.image_tokens, here.end.cached) == (len(rows), (False,))
        both = llava.complete([llava.question("What differs?", [picture, sent])])
        assert both.end.positions == (len(rows), len(rows))
        for wrong, said in (
            (embedded(rows[:, :-1]), "width"),
            (embedded(rows, identity="another"), "another vision"),
        ):
            with pytest.raises(BadImage, match=said):
                llava.complete([llava.question("What?", [wrong])])
        with pytest.raises(trifocal.UsageError, match="came as embeddings"):
            llava.explain([llava.question("What?", [sent]), trifocal.Message("assistant", "A star.")])
        assert llava.preview(sent) is None
        assert isinstance(sent, Embedded)


def test_an_archive_of_many_members_is_refused_before_an_object_is_made_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = by_hand(b"", **{f"data/{at}x": b"" for at in range(100)})
    monkeypatch.setattr(zipfile, "ZipInfo", None)
    with pytest.raises(BadImage, match="embeddings are a dense tensor"):
        from_base64(base64.b64encode(many).decode())
