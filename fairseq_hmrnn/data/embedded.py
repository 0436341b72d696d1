"""A text that is on every machine, for trying things out."""

from __future__ import annotations


def embedded_text() -> str:
    """CPython's own documentation topics in alphabetical order: English that every Python brings along."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))
