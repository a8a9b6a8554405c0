"""Settings of the cluster; the text under each field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class RayConfig:
    """How to reach the cluster that runs the actors."""

    address: str | None = None
    """Cluster to join: `auto` or host:port; null joins $RAY_ADDRESS where set, else starts one
    here."""
    auth_mode: Literal["disabled", "token"] | None = None
    """Ray's authentication; null keeps $RAY_AUTH_MODE. Where that is unset, too, a cluster started
    here takes a token of its own, and Ray decides about one that is joined."""
