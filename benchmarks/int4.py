"""One linear layer of LLaVA-13B's size (5120 to 13824): packed four-bit product against dense, milliseconds a call.

    python benchmarks/int4.py [cpu|cuda]

The median of interleaved rounds, with the error of the packed product against the exact float32 one.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from trifocal.engines.base import PackedLinear
from trifocal.engines.int4 import Int4Linear

INPUTS, OUTPUTS, GROUP, ROUNDS = 5120, 13824, 128, 15


def main(device: torch.device) -> None:
    random = torch.Generator().manual_seed(0)
    groups = INPUTS // GROUP
    layer = PackedLinear(
        4,
        torch.randint(0, 16, (OUTPUTS, INPUTS), generator=random, dtype=torch.uint8),
        torch.rand(groups, OUTPUTS, generator=random) / 500,
        torch.randint(1, 17, (groups, OUTPUTS), generator=random).float(),
        torch.arange(INPUTS) // GROUP,
    )
    order = torch.randperm(INPUTS, generator=random)
    scattered = PackedLinear(4, layer.levels, layer.scales, layer.zeros, layer.group[order])
    weight = layer.scales[layer.group].T * (layer.levels.float() - layer.zeros[layer.group].T)
    dense = torch.bfloat16 if device.type == "cpu" else torch.float16
    kinds = {
        str(dense).removeprefix("torch."): torch.nn.functional.linear,
        "int4": Int4Linear(layer, device),
        "int4, act-order": Int4Linear(scattered, device),
    }
    placed = weight.to(device, dense)
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print("| rows | " + " | ".join(kinds) + " | error of int4 |\n|---|" + "---|" * (len(kinds) + 1))
    for rows in (1, 8, 320):
        x = torch.randn(rows, INPUTS, generator=random)
        inputs = x.to(device, dense)
        exact = x @ weight.T
        error = (kinds["int4"](inputs).float().cpu() - exact).norm() / exact.norm()
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, kind in kinds.items():
                given = (inputs, placed) if kind is torch.nn.functional.linear else (inputs,)
                times[name].append(_timed(kind, given, device))
        row = " | ".join(f"{statistics.median(times[name]) * 1e3:.3f}" for name in kinds)
        print(f"| {rows} | {row} | {float(error):.4f} |", flush=True)


def _timed(call: object, given: tuple[torch.Tensor, ...], device: torch.device) -> float:
    assert callable(call)
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(3):
        call(*given)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / 3


if __name__ == "__main__":
    main(torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu"))
