"""Tensors under canonical names, read when asked for: plain, changed by an adapter, or unpacked from few bits."""

__all__: list[str] = []
