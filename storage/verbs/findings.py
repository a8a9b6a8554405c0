"""What a check of a dataset found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """Say what is wrong with one file; `by_hand` where no repair puts it right."""

    path: str
    problem: str
    unit: int | None = None
    by_hand: bool = False

    def __str__(self) -> str:
        where = "" if self.unit is None else f" (unit {self.unit})"
        return f"{self.path}{where}: {self.problem}"


@dataclass
class Report:
    """Hold what a check found.

    Args:
        units: units checked.
        samples: samples in them.
        invalid: samples among them that could not be used.
        bytes: bytes in them.
        findings: what is damaged.
        unreadable: what could not be read: no damage, and no repair acts on it.
        missing: units requested and not there: not damage, the next run makes them.
        notes: what is odd and harms nothing.
        unsealed: files without a digest of themselves, which an earlier version wrote.
    """

    units: int = 0
    samples: int = 0
    invalid: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    unreadable: list[Finding] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unsealed: int = 0

    @property
    def damaged_units(self) -> list[int]:
        """Units with something wrong, ascending; none of which some file could not be read."""
        unknown = {finding.unit for finding in self.unreadable}
        damaged = {finding.unit for finding in self.findings if finding.unit not in unknown}
        return sorted(unit for unit in damaged if unit is not None)


def reason_of(error: Exception, path: str) -> str:
    """Return an error's words without the path they begin with."""
    return str(error).removeprefix(f"{path}: ")
