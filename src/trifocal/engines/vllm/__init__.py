"""vLLM as a language engine: in this machine's memory, or any server of it that takes prompts as embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from trifocal.engines.base import Engine
from trifocal.engines.recipe import Recipe
from trifocal.errors import UsageError
from trifocal.placement import Placement

__all__ = ["load"]


def load(
    recipe: Recipe,
    placement: Placement,
    *,
    context: int = 0,
    gpu_memory: float = 0.9,
    kv_gib: float = 0.0,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    eager: bool | None = None,
    url: str = "",
    key: str = "",
    model: str = "",
    first_seconds: float = 300.0,
    next_seconds: float = 60.0,
) -> Engine:
    """A language model in vLLM's engine, or behind the server of vLLM at ``url``; docs/engines.md tells the options.

    Raises:
        UsageError: options of the one beside the other.
        CheckpointError: weights missing or damaged, or of a kind that vLLM does not have.
        MissingExtra: vLLM is not installed.
        PeerError: the server can't be asked.
    """
    if url:
        from trifocal.engines.served import Served
        from trifocal.engines.vllm.served import Completions

        here = {"gpu_memory": gpu_memory != 0.9, "kv_gib": kv_gib, "tensor_parallel": tensor_parallel != 1}
        here |= {"pipeline_parallel": pipeline_parallel != 1, "eager": eager is not None}
        _refuse(here, "the model is loaded at the other end of url")
        seconds = (first_seconds, next_seconds)
        return Served(recipe, url, Completions(), key=key, model=model, context=context, seconds=seconds)
    there = {"key": key, "model": model, "first_seconds": first_seconds != 300.0, "next_seconds": next_seconds != 60.0}
    _refuse(there, "without -e url= the model is loaded here")
    from trifocal.engines.vllm.local import Local

    on_cpu = placement.device == "cpu"
    return Local(
        recipe,
        placement,
        context=context,
        gpu_memory=gpu_memory,
        kv_gib=kv_gib,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        eager=on_cpu if eager is None else eager,
    )


def _refuse(given: Mapping[str, object], why: str) -> None:
    for name, value in given.items():
        if value:
            raise UsageError(f"-e {name}=: {why}")
