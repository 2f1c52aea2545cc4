"""Conversations as text: families, other people's templates in a sandbox, markup, and what stays of a history."""

__all__: list[str] = []
