"""How the threads of one computation wait for each other."""

from __future__ import annotations

import os

POLICY = "OMP_WAIT_POLICY"
"""OpenMP's own variable; its libraries read it when they are loaded, GNU's and Intel's alike."""


def wait_asleep() -> None:
    """Let OpenMP's threads sleep where they wait for each other, unless the user said otherwise.

    They spin by default: on a machine with other work they burn the CPU that the thread waited for
    needs, at every operation of a network. Call it before torch is loaded; later it does nothing.
    """
    os.environ.setdefault(POLICY, "passive")
