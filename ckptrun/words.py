"""Words for numbers. Torch-free."""

__all__ = ["counted"]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, which takes an s where ``plural`` does not say otherwise."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
