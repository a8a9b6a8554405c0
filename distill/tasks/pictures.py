"""Pictures of embeddings: a plane of points, images beside their nearest ones, clusters.

Shapes: N images, D features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.bench.layout import TextTable
from distill.probes.clusters import k_means, unit_rows
from distill.probes.scaling import centre
from dreamshard.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from distill.bench.bench import Bench, Drawn
    from distill.configs.embeddings import PicturesConfig

TRUSTED = 12
"""Neighbours whose keeping in the plane is told, at most (count)."""
COMPONENTS = 50
"""Principal components that t-SNE and UMAP are given, at most (count), as their authors do."""
CELL_PX = 48


class Pictures:
    """Draw held-out images by what each representation finds alike; write PNGs into the folder."""

    def __init__(self, config: PicturesConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed
        _packages(config)  # before any image is read

    def describe(self) -> str:
        """Say in one line what is drawn."""
        return f"pictures: {', '.join(self.config.kinds)}"

    def count(self, bench: Bench) -> int:
        """Return how many pictures' worth of work `run` will report."""
        return len(bench.names) * len(self.config.kinds)

    def check(self, bench: Bench) -> None:
        """Compare what is asked for with the images there are.

        Raises: DataError.
        """
        self._require(min(self.config.images, bench.total("heldout")))

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: figures in per cent}, "files", "images"}.

        "trustworthiness": how far neighbours in the plane are neighbours in the embedding, 100 at
        most; "same class": of the nearest neighbours shown, over all images, those of the image's
        own class (images with labels alone); "purity": of the clusters' members, those of the
        cluster's most frequent class.

        Raises:
            DataError: fewer images than the perplexity, the clusters or the neighbours ask for.
        """
        drawn = bench.draw("heldout", count=self.config.images)
        self._require(len(drawn.images))
        features = bench.embed(drawn.images)
        rows: dict[str, dict[str, float]] = {name: {} for name in bench.names}
        files: list[str] = []

        def keep(kind: str, name: str, png: bytes) -> None:
            files.append(f"pictures-{kind}{_slug(name)}.png")
            (bench.folder / files[-1]).write_bytes(png)

        if "embedding" in self.config.kinds:
            keep("embedding", "", self._planes(features, drawn, rows, report))
        for name in bench.names:
            near = unit_rows(features[name])
            if "neighbours" in self.config.kinds:
                keep("neighbours", name, self._neighbours(near, drawn, rows[name]))
                report()
            if "clusters" in self.config.kinds:
                keep("clusters", name, self._clusters(near, drawn, rows[name]))
                report()
        return {"rows": rows, "files": files, "images": len(drawn.images)}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out."""
        columns = list(next(iter(result["rows"].values())))
        lines = [
            [name, *(f"{row[column]:.1f}" for column in columns)]
            for name, row in result["rows"].items()
        ]
        title = f"{result['images']} held-out images, drawn in {', '.join(result['files'])}; in %"
        return [TextTable(title, ["representation", *columns], lines)]

    def _require(self, count: int) -> None:
        config = self.config
        asked = {
            ("clusters", "clusters"): config.clusters,
            ("neighbours", "queries"): config.queries,
            ("neighbours", "shown"): config.shown + 1,
            ("embedding", "perplexity"): config.perplexity + 1,
        }
        for (kind, key), least in asked.items():
            if kind in config.kinds and count < least:
                raise DataError(
                    f"pictures.{key}: got {getattr(config, key)} for {count} held-out images, "
                    f"allowed what takes {count} images or fewer, not {least:g}. Give more images, "
                    f"a smaller {key}, or leave {kind} out of pictures.kinds."
                )

    def _planes(
        self,
        features: Mapping[str, np.ndarray],
        drawn: Drawn,
        rows: Mapping[str, dict[str, float]],
        report: Callable[[], None],
    ) -> bytes:
        """Draw all representations side by side."""
        from sklearn.manifold import trustworthiness

        from dreamshard.charts import LIGHT, scatter_panels

        planes = {}
        for name, rows_of in features.items():
            reduced = _components(rows_of)
            planes[name] = self._plane(reduced)
            few = min(TRUSTED, (len(reduced) - 1) // 2)  # of more it is not defined
            kept = trustworthiness(reduced, planes[name], n_neighbors=few)
            rows[name]["trustworthiness"] = 100.0 * float(kept)
            report()
        return scatter_panels(planes, drawn.labels, drawn.names, LIGHT)

    def _plane(self, reduced: np.ndarray) -> np.ndarray:
        """Return float (N, 2)."""
        state = self.seed % 2**32
        if self.config.method == "umap":
            return np.asarray(_umap()(random_state=state).fit_transform(reduced))
        from sklearn.manifold import TSNE

        init = "pca" if reduced.shape[1] > 1 and reduced.std() > 0 else "random"
        method = TSNE(perplexity=self.config.perplexity, init=init, random_state=state)
        return np.asarray(method.fit_transform(reduced))

    def _neighbours(self, near: np.ndarray, drawn: Drawn, row: dict[str, float]) -> bytes:
        """Draw images, evenly drawn, each with its nearest others by cosine, nearest first."""
        from dreamshard.pictures import image_grid

        shown = self.config.shown
        likeness = near @ near.T
        np.fill_diagonal(likeness, -np.inf)
        order = np.argsort(-likeness, axis=1, kind="stable")[:, :shown]
        if drawn.labels is not None and (drawn.labels >= 0).all():
            same = drawn.labels[order] == drawn.labels[:, None]
            row["same class"] = 100.0 * float(same.mean())
        queries = np.linspace(0, len(near), self.config.queries, endpoint=False).astype(int)
        cells = [drawn.images[[query, *order[query]]] for query in queries]
        return image_grid(np.concatenate(cells), columns=shown + 1, cell_px=_cell(drawn))

    def _clusters(self, near: np.ndarray, drawn: Drawn, row: dict[str, float]) -> bytes:
        """Draw the members nearest to each centre, a row per cluster; missing members are white."""
        from dreamshard.pictures import image_grid

        config = self.config
        centres, (assigned,) = k_means(
            near, clusters=config.clusters, iterations=100, seed=self.seed
        )
        cells, frequent = [], 0
        for number, centre_of in enumerate(centres):
            members = np.flatnonzero(assigned == number)
            apart = np.linalg.norm(near[members] - centre_of, axis=1)
            nearest = members[np.argsort(apart, kind="stable")[: config.shown]]
            white = np.full((config.shown - len(nearest), *drawn.images.shape[1:]), 255, np.uint8)
            cells.append(np.concatenate([drawn.images[nearest], white]))
            if drawn.labels is not None and len(members):
                frequent += int(np.unique(drawn.labels[members], return_counts=True)[1].max())
        if drawn.labels is not None and (drawn.labels >= 0).all():
            row["purity"] = 100.0 * frequent / len(near)
        return image_grid(np.concatenate(cells), columns=config.shown, cell_px=_cell(drawn))


def _components(features: np.ndarray) -> np.ndarray:
    """Return the first 50 principal components of centred features, float32 (N, <= 50)."""
    from sklearn.decomposition import PCA

    (centred,) = centre(features, features)
    most = min(COMPONENTS, *centred.shape)
    return PCA(most, svd_solver="full").fit_transform(centred).astype(np.float32)


def _packages(config: PicturesConfig) -> None:
    """Import what draws.

    Raises:
        ConfigError: it is not installed.
    """
    if "embedding" in config.kinds and config.method == "umap":
        _umap()
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        hint = "pip install dreamshard, or leave pictures out of tasks."
        problem = Problem("tasks", f"pictures ({error})", "matplotlib and Pillow", hint)
        raise ConfigError(problem) from error


def _umap() -> Any:
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports] - only where installed
    except ImportError as error:
        hint = "pip install umap-learn, or take pictures.method tsne."
        problem = Problem("pictures.method", f"umap ({error})", "umap-learn installed", hint)
        raise ConfigError(problem) from error
    return UMAP


def _cell(drawn: Drawn) -> int:
    return max(CELL_PX, min(96, drawn.images.shape[2]))


def _slug(name: str) -> str:
    return "-" + re.sub(r"\W+", "-", name).strip("-").lower() if name else ""
