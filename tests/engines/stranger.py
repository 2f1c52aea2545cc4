"""An engine as a stranger would write it, in a package of its own: a runner, and batching for free."""

import torch

from trifocal.engines.base import Abilities
from trifocal.engines.batching import Batching, Model
from trifocal.engines.echo import END, VOCABULARY, Bytes

BLOCK = 4


class Stranger(Batching):
    """What comes next depends on everything before it, as far as it is in the blocks."""


class Summing:
    """Keeps one number a position; its keys and values."""

    def __init__(self, positions, table, head):
        self.positions, self.table, self.head = positions, table, head
        self.memory = torch.zeros(positions, table.shape[1])

    def forward(self, runs):
        told = []
        for run in runs:
            slots = torch.tensor([block * BLOCK + at for block in run.blocks for at in range(BLOCK)])
            end = run.start + run.count
            self.memory[slots[run.start : end]] = run.part.splice(lambda ids: self.table[ids])
            if run.logits:
                held = self.memory[slots[:end]]
                weights = torch.cos(torch.arange(end)[:, None] * 0.7 + torch.arange(held.shape[1]))
                told.append(torch.tanh((held * weights).sum(0)) @ self.head)
        return torch.stack(told) if told else torch.empty(0, VOCABULARY)


def load(recipe, placement, *, context=512):
    """A random model as wide as the checkpoint's language model."""
    width = int(recipe.config["hidden_size"])
    dice = torch.Generator().manual_seed(0)

    def start():
        table = torch.randn(VOCABULARY, width, generator=dice)
        return Model(
            runner=Summing(64 * context, table, torch.randn(width, VOCABULARY, generator=dice)),
            tokenizer=Bytes(),
            hidden=width,
            context=context,
            end_ids=frozenset({END}),
            able=Abilities(logprobs=True),
            block=BLOCK,
        )

    return Stranger(start)
