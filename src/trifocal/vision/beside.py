"""A stream of its own for what is computed on a card beside others: it waits for nobody's step, and no step for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

__all__ = ["Beside"]

_FIRST = -1  # of streams, whose blocks are begun before those of the others


class Beside:
    """Where work on the cards of some parts goes while somebody else uses them; elsewhere nothing is changed.

    A picture is copied to a card only when all is done that its stream has to do: on that of a language model it waited
    for each step that was begun, several times.
    """

    def __init__(self, *parts: nn.Module) -> None:
        devices = {next(part.parameters()).device for part in parts}
        cards = [device for device in devices if device.type == "cuda"]
        self._streams = [torch.cuda.Stream(card, priority=_FIRST) for card in cards]  # type: ignore[no-untyped-call]
        for card in cards:
            torch.cuda.default_stream(card).synchronize()  # the weights are there

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """What is begun within is done behind it."""
        with ExitStack() as streams:
            for stream in self._streams:
                streams.enter_context(torch.cuda.stream(stream))
            yield
        for stream in self._streams:
            stream.synchronize()

    @staticmethod
    def given(tensors: Sequence[torch.Tensor]) -> None:
        """Tensors that were made within are used by others: their memory is free when those have done with it, too."""
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.default_stream(tensor.device))
