"""How far synthetic images lie from real ones in each representation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.bench.layout import TextTable
from distill.probes.mmd import bandwidth, squared_mmd
from dreamshard.errors import DataError

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.embeddings import MmdConfig
    from storage.snapshot import Snapshot

COLUMNS = ("synthetic", "real")
AT_ONCE = 1024
"""Images of a dataset read at once (count)."""


class Mmd:
    """Estimate the squared discrepancy of embeddings of held-out and of synthetic images.

    Beside it stands that of held-out and of training images, both real: what is no more than that
    is none. Figures of several representations compare by their ratio to one another only, as each
    has its own kernel width. Source: Squeeze-and-Span, table 6, which names no kernel; METHODS 1.7.
    """

    def __init__(self, config: MmdConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        return f"squared MMD of real and synthetic images ({self.config.kernel} kernel)"

    def count(self, bench: Bench) -> int:
        """Return how many rows `run` will report."""
        return len(bench.names)

    def check(self, bench: Bench) -> None:
        """Find the synthetic images.

        Raises: ConfigError, DataError.
        """
        if self.config.dataset:
            self._kept()
        else:
            from pipeline.images.source import open_source

            open_source(self.config.synthetic_images, key="mmd.synthetic_images", part="train")

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {"synthetic", "real": {"mean": 1000 x MMD^2, "width"}}}, ...}.

        A cell of None: the embeddings are all alike, so that there is no kernel width. "images":
        how many of each kind there were.

        Raises:
            DataError: fewer than two images of a kind, or images of another size.
        """
        count = self.config.images
        parts: dict[str, dict[str, np.ndarray]] = {}
        first, counts = 0, dict[str, int]()
        for split in ("heldout", "train"):
            images = bench.draw(split, count=count).images
            parts[split] = bench.embed(images, first=first)
            first, counts[split] = first + len(images), len(images)
        parts["synthetic"] = self._synthetic(bench, first=first)
        counts["synthetic"] = len(next(iter(parts["synthetic"].values())))
        for kind, number in counts.items():
            if number < 2:
                raise DataError(f"mmd: got {number} {kind} image, allowed 2 or more of each kind.")
        rows: dict[str, dict[str, Any]] = {}
        for name in bench.names:
            heldout, others = (
                parts["heldout"][name],
                (parts["synthetic"][name], parts["train"][name]),
            )
            cells = [self._cell(heldout, other, device=str(bench.device)) for other in others]
            rows[name] = dict(zip(COLUMNS, cells, strict=True))
            report()
        return {"rows": rows, "images": counts, "kernel": self.config.kernel}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        kernels = {
            "rbf": "RBF kernel of the median distance on L2-normalised features",
            "kid": "KID's cubic kernel",
        }
        title = f"1000 x squared MMD from held-out images, unbiased, {kernels[result['kernel']]}"
        lines = [
            [name, *("all alike" if row[c] is None else f"{row[c]['mean']:.3g}" for c in COLUMNS)]
            for name, row in result["rows"].items()
        ]
        header = ["representation", "synthetic images", "training images"]
        return [TextTable(title, header, lines)]

    def _cell(
        self, heldout: np.ndarray, other: np.ndarray, *, device: str
    ) -> dict[str, float] | None:
        kernel, width = self.config.kernel, 1.0
        if kernel == "rbf":
            width = bandwidth(heldout, other, device=device)
            if width < 1e-6:
                return None
        distance = squared_mmd(heldout, other, kernel=kernel, width=width, device=device)
        return {"mean": 1000.0 * distance} | ({"width": width} if kernel == "rbf" else {})

    def _synthetic(self, bench: Bench, *, first: int) -> dict[str, np.ndarray]:
        """Embed the synthetic images."""
        if not self.config.dataset:
            key = "mmd.synthetic_images"
            drawn = bench.draw(self.config.synthetic_images, count=self.config.images, key=key)
            return bench.embed(drawn.images, first=first)
        from storage.rows.pick import read_rows

        key, (snapshot, made) = f"mmd.dataset: {self.config.dataset}", self._kept()
        places = np.linspace(0, len(made), min(self.config.images, len(made)), endpoint=False)
        embedded = list[dict[str, np.ndarray]]()
        for numbers in np.split(made[places.astype(int)], range(AT_ONCE, len(places), AT_ONCE)):
            images = read_rows(snapshot, "image", numbers)
            if images.shape[1:3] != bench.image_size:
                got, allowed = (f"{h}x{w}" for h, w in (images.shape[1:3], bench.image_size))
                raise DataError(
                    f"{key}: got images of {got} pixels, allowed {allowed}, as the others. Set "
                    "image.size, or export the images and name them in mmd.synthetic_images."
                )
            embedded.append(bench.embed(images, first=first))
            first += len(images)
        return {name: np.concatenate([part[name] for part in embedded]) for name in embedded[0]}

    def _kept(self) -> tuple[Snapshot, np.ndarray]:
        """Find the dataset, and the places in it that hold an image, int64 (N,)."""
        from storage.catalog import find_dataset

        snapshot = find_dataset(self.config.dataset).snapshot()
        made = np.flatnonzero(snapshot.valid)
        if "image" not in snapshot.array_names or not len(made):
            raise DataError(
                f"mmd.dataset: {self.config.dataset}: got a dataset without images, allowed one "
                "that keeps them."
            )
        return snapshot, made
