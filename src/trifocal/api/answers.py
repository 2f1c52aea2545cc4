"""What is told of an answer beside its text: usage, and our own additions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trifocal.api.jobs import Step

__all__ = ["additions_of", "finish_of", "scored", "usage_of"]


def usage_of(steps: Sequence[Step], each: int = 1) -> dict[str, Any]:
    """What answers cost, in positions, as OpenAI tells it; ``each`` of them are to one and the same prompt."""
    ends = [step.end for step in sorted(steps, key=lambda step: step.index) if step.end]
    prompts = ends[::each]
    prompt, completion = sum(end.prompt_tokens for end in prompts), sum(end.completion_tokens for end in ends)
    images = sum(end.image_tokens for end in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"accepted_prediction_tokens": sum(end.guessed for end in ends)},
        "prompt_tokens_details": {
            "cached_tokens": sum(end.cached_positions for end in prompts),
            "image_tokens": images,
            "text_tokens": prompt - images,
        },
    }


def additions_of(step: Step) -> dict[str, Any]:
    """What we tell besides: positions of each picture, cache hits, what was left out or done otherwise, seconds."""
    assert step.end is not None
    return {
        "image_positions": list(step.end.positions),
        "cached_images": step.end.cached_images,
        "left_out": list(step.end.left_out),
        "notes": list(step.end.notes),
        "timings": {name: round(seconds, 6) for name, seconds in step.end.timings.items()},
    }


def scored(text: str, logprob: float) -> dict[str, Any]:
    """A token with its log-probability, as OpenAI and Ollama tell it."""
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


def finish_of(step: Step) -> str:
    """How an answer ended, in OpenAI's words."""
    assert step.end is not None
    return "tool_calls" if step.calls and step.end.finish == "stop" else step.end.finish
