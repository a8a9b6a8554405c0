"""The cluster that the tests of this folder disturb."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def raylets() -> Iterator[object]:
    """Three raylets for the tests of one file (`Raylets`)."""
    pytest.importorskip("ray")
    from tests.chaos.raylet_client import three_raylets

    with three_raylets() as running:
        yield running
