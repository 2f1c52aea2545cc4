"""The hub: what is found on this machine or fetched from there, and checked."""

__all__: list[str] = []
