"""Trains thimble for a given time on one GPU: first the tower alone, then all of it.

``python -m training.train --minutes 18`` needs a CUDA device and about 30 GB of its memory, 12 CPU cores and the fonts
that sprites.py names; ``--toy`` runs a few steps of a small model on the CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.evaluate import SEED, SETS, Score, count
from training.export import export
from training.model import LanguageBlock, Sizes, Thimble, load_hub, star_mask
from training.muon import Muon
from training.packing import MODEL, Encoder, make_batch
from training.render import Renderer, aims, letterboxed, normalised, weathered
from training.scenes import make_scene, pack

ONES, TWOS = 320, 64  # rows with one picture and with two; one shape, so that all is compiled once
MUON_RATE, ADAM_RATE = 0.02, 2e-3
TOWER_WEIGHT = 0.3  # of the tower's own loss while all of it trains
Tensors = dict[str, torch.Tensor]


def _make(kind: str, seed: int, out: Any, ones: int, twos: int) -> None:
    """A process that makes batches for ever."""
    rng, encode = random.Random(seed), Encoder()
    while True:
        if kind == "pictures":
            packed = [pack(make_scene(rng)) for _ in range(ones + twos)]
            slots, behind = (np.stack(each) for each in zip(*packed, strict=True))
            out.put({"slots": slots, "backgrounds": behind})
        else:
            out.put(make_batch(rng, encode, ones, twos)[0])


def batches(kind: str, seed: int, workers: int, ones: int, twos: int, pinned: bool) -> Iterator[Tensors]:
    """Batches from so many processes, of questions or of mere pictures."""
    context = multiprocessing.get_context("fork")
    made, ready = context.Queue(24), queue.Queue[Tensors](3)
    for worker in range(workers):
        start = (kind, seed * 1_000_003 + worker + (500 if kind == "pictures" else 0), made, ones, twos)
        context.Process(target=_make, args=start, daemon=True).start()

    def fetch() -> None:
        while True:
            tensors = {name: torch.from_numpy(values) for name, values in made.get().items()}
            ready.put({name: each.pin_memory() if pinned else each for name, each in tensors.items()})

    threading.Thread(target=fetch, daemon=True).start()
    while True:
        yield ready.get()


class Trainer:
    """The model, its optimisers, and one step of each kind."""

    def __init__(self, model: Thimble, device: str) -> None:
        self.model, self.device, self.compiled = model.to(device), device, device == "cuda"
        matrices = [
            parameter
            for name, parameter in model.named_parameters()
            if name.startswith(("tower.", "language.")) and parameter.dim() == 2
        ]
        self.muon = Muon(matrices)
        taken = {id(parameter) for parameter in matrices}
        self.tower = {id(parameter) for name, parameter in model.named_parameters() if name.startswith("tower.")}
        self.others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
        groups = [
            {"params": [each for each in self.others if each.dim() > 1], "weight_decay": 0.01},
            {"params": [each for each in self.others if each.dim() <= 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.95), fused=self.compiled)
        self.renderer = Renderer(device, self.compiled)
        self.mask: Callable[[torch.Tensor], Any] = self._compile() if self.compiled else star_mask

    def _compile(self) -> Callable[[torch.Tensor], Any]:
        """Compiles block by block; returns what makes FlexAttention's mask of a batch's conversations."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        LanguageBlock.flex = staticmethod(flex_attention)
        for block in (*self.model.tower, *self.model.language):
            block.compile(dynamic=False)
        self.model.judge = torch.compile(self.model.judge, dynamic=False)  # type: ignore[method-assign]
        kept: list[Callable[[torch.Tensor], Any]] = []

        def first(conversations: torch.Tensor) -> Callable[[torch.Tensor], Any]:
            of = conversations.clone()  # one buffer, since a mask is compiled with what it closes over
            rows, tokens = of.shape

            def visible(row: Any, head: Any, query: Any, key: Any) -> Any:
                return (query >= key) & ((of[row, key] == 0) | (of[row, key] == of[row, query]))

            def later(conversations: torch.Tensor) -> Any:
                of.copy_(conversations)
                return create_block_mask(visible, rows, None, tokens, tokens, device=of.device, _compile=True)

            return later

        def mask(conversations: torch.Tensor) -> Any:
            if not kept:
                kept.append(first(conversations))
            return kept[0](conversations)

        return mask

    def forward(self, batch: Tensors, alone: bool = False) -> tuple[torch.Tensor, ...]:
        """The tower's loss and its share of right labels; unless alone, loss and right tokens of the answers."""
        on = {name: each.to(self.device, non_blocking=True) for name, each in batch.items()}
        slots, pictures = on["slots"], self.renderer(on["slots"], on["backgrounds"])
        if self.model.training:
            pictures, slots = letterboxed(pictures, slots)
        pictures = normalised(weathered(pictures))
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.compiled):
            seen = self.model.see(pictures.to(torch.bfloat16) if self.compiled else pictures)
            told = self.model.tower_loss(seen, aims(slots, on["backgrounds"]))
            if alone:
                return told
            ids, mask = on["ids"].long(), self.mask(on["conversations"].int())
            hidden = self.model.read(ids, on["features"].long(), on["positions"].long(), mask, seen)
            return (*told, *self.model.judge(hidden, on["targets"].long(), ids))

    def step(self, batch: Tensors, rate: float, alone: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """One step at that share of the full rate; returns the loss and the share of right labels."""
        tower_loss, right, *rest = self.forward(batch, alone)
        loss = tower_loss if alone else rest[0] + TOWER_WEIGHT * tower_loss
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        if not alone:
            torch.nn.utils.clip_grad_norm_([each for each in self.others if each.grad is not None], 1.0)
        self.muon.step(MUON_RATE * rate, (lambda parameter: id(parameter) in self.tower) if alone else None)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.muon.zero()
        return loss.detach(), right

    @torch.no_grad()
    def measure(self, ones: int, twos: int) -> dict[str, Score]:
        """Scores on every held-out set: three batches of the first two, two of the next two, one of the last."""
        self.model.eval()
        encode, scores = Encoder(), {}
        for held, times in zip(SETS, (3, 3, 2, 2, 1), strict=True):
            rng, score = random.Random(SEED), Score()
            for _ in range(times):
                batch, spans = make_batch(rng, encode, ones, twos, split=held.split, held_out=held.wording)
                *_, right = self.forward({name: torch.from_numpy(values) for name, values in batch.items()})
                count(score, batch["targets"].tolist(), right.tolist(), spans)
            scores[held.name] = score
        return scores


def _log(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=18, help="of all of it, after compiling")
    parser.add_argument("--tower-minutes", type=float, default=1, help="of the tower alone, before that")
    parser.add_argument("--peak", type=float, default=1.0, help="the highest share of the full rate")
    parser.add_argument("--fall", type=float, default=0.45, help="the share of the time over which the rate falls to 0")
    parser.add_argument("--start", type=Path, help="a folder of exported weights to go on from")
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.set_float32_matmul_precision("high")
    sizes = Sizes(width=64, tower_layers=2, tower_hidden=128, layers=2, hidden=128, heads=1) if given.toy else None
    ones, twos = (6, 2) if given.toy else (ONES, TWOS)
    pictures = batches("pictures", given.seed, 1 if given.toy else 3, ones, twos, not given.toy)
    questions = batches("questions", given.seed, 1 if given.toy else given.workers, ones, twos, not given.toy)
    model = load_hub(given.start, sizes) if given.start else Thimble(sizes)
    trainer = Trainer(model.train(), "cpu" if given.toy else "cuda")
    for alone, minutes in ((True, given.tower_minutes), (False, given.minutes)):
        _run(trainer, pictures if alone else questions, alone, minutes * 60, given)
    export(model, given.out)
    for name, score in trainer.measure(ones, twos).items():
        _log(held_out=name, one_picture=score.pair(False), two_pictures=score.pair(True))


def _run(trainer: Trainer, source: Iterator[Tensors], alone: bool, seconds: float, given: argparse.Namespace) -> None:
    """Steps for so many seconds, counted from the third step, when all is compiled."""
    started, saved, share, step = time.time(), time.time(), 0.0, 0
    while share < 1 and seconds > 0:
        warm = min(1.0, (step + 1) / 60)
        rate = warm if alone else given.peak * warm * min(1.0, max(0.0, (1 - share) / given.fall))
        loss, right = trainer.step(next(source), rate, alone)
        step += 1
        if step == 3:
            started = time.time()
        share = (time.time() - started) / seconds if step > 3 else 0.0
        if step % (1 if given.toy else 100) == 0:
            seconds_now = round(time.time() - started)
            _log(alone=alone, step=step, seconds=seconds_now, loss=float(loss), labels=float(right), rate=rate)
        if not alone and time.time() - saved > 60:
            export(trainer.model, given.out)
            saved = time.time()


if __name__ == "__main__":
    main()
