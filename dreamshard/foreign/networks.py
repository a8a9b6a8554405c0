"""Bound what a constructor can be made to build by settings or shapes that come from a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

MOST_PARTS = 20_000
"""Modules of a network: timm's largest have some 3,000."""
MOST = 1 << 20
"""Of any number in settings; some constructors make lists of so many before they build anything."""


class TooManyPartsError(ValueError):
    """A constructor would build more modules than any network has."""


@contextmanager
def bounded(settings: object, *, most_parts: int = MOST_PARTS) -> Iterator[None]:
    """Stop the construction of a network that goes on for ever, such as one of 10^9 layers.

    Args:
        settings: what its constructor gets; a number in it, however deep, is at most `MOST`.
        most_parts: modules that it may have (count).

    Raises: ValueError, also from within the constructor: `TooManyPartsError` for what it builds.
    """
    from torch.nn.modules.module import register_module_module_registration_hook

    if (vast := _vast_number(settings)) is not None:
        raise ValueError(f"{vast} is more than any network has")
    count = 0

    def count_one(*_: object) -> None:
        nonlocal count
        count += 1
        if count > most_parts:
            raise TooManyPartsError(f"more than {most_parts:,} parts")

    handle = register_module_module_registration_hook(count_one)
    try:
        yield
    finally:
        handle.remove()


def one_reason(error: Exception) -> str:
    """Say in a line why a constructor gave up, with the error's kind where its text is but a word.

    Constructors index tables by names of settings: `KeyError: 'x'` is "'x'" as a text.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:300] if lines else ""
    return text if " " in text else f"{type(error).__name__}: {text}".rstrip(": ")


def number_of_weights(network: nn.Module) -> int:
    """Return how many numbers the parameters of a network hold, which may be without values."""
    return sum(value.numel() for value in network.parameters())


def _vast_number(settings: object) -> int | None:
    if isinstance(settings, int):
        return settings if abs(settings) > MOST else None
    if not isinstance(settings, Mapping | list | tuple):
        return None
    parts = settings.values() if isinstance(settings, Mapping) else settings
    return next((number for part in parts if (number := _vast_number(part)) is not None), None)
