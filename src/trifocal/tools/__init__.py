"""Whole tasks beside the answering: checkpoints fetched, deltas applied, halves taken apart and put together."""

__all__: list[str] = []
