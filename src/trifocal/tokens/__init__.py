"""Tokenizers as their files tell them: four formats, one shape, and no text that becomes a control token."""

__all__: list[str] = []
