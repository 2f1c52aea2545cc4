"""The one use case: a conversation goes in, an answer comes out; settings, spans, budget and explanations."""

__all__: list[str] = []
