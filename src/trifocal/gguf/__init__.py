"""GGUF files: container, blocks, language half, tokenizer and vision half."""

__all__: list[str] = []
