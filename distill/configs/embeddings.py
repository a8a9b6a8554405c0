"""Settings of the tasks that look at embeddings: clusters, distances, other datasets, pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.tasks import FrozenProbeConfig
from distill.configs.types import Count
from dreamshard.config.reads import OWN, Table
from dreamshard.errors import Problem
from pipeline.images.source import SourceConfig


@dataclass(kw_only=True)
class ClusterAlignmentConfig:
    """CompRess's cluster alignment: k-means of training images as a classifier of others."""

    iterations: Count = 20
    """Most iterations of k-means (count); 20 published."""
    runs: Count = 3
    """Runs of k-means from other centres, whose accuracies are averaged (count)."""


@dataclass(kw_only=True)
class MmdConfig:
    """Squared maximum mean discrepancy between embeddings of real and of synthetic images."""

    synthetic_images: SourceConfig = field(default_factory=SourceConfig)
    """The synthetic images, as files; or name a dataset of shards."""
    dataset: str = ""
    """Folder of a dataset of shards that keeps its images, such as `dreamshard synthesize` makes;
    in place of synthetic_images."""
    kernel: Literal["rbf", "kid"] = "rbf"
    """rbf: exp(-d^2 / 2 s^2) of L2-normalised embeddings, s the median distance in the joint sample
    of each representation; kid: (x.y / D + 1)^3 of raw embeddings, as the kernel inception distance
    has it."""
    images: Annotated[int, Field(ge=2)] = 10_000
    """Images of either kind at most, drawn by the seed (count)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        images = self.synthetic_images
        if not self.dataset or (images.kind == "auto" and not images.path):
            return []
        hint = "Leave one of the two out."
        return [Problem("dataset", repr(self.dataset), "nothing beside synthetic_images", hint)]

    @property
    def is_given(self) -> bool:
        """Whether any synthetic images are named."""
        return bool(self.dataset or self.synthetic_images.path) or (
            self.synthetic_images.kind != "auto"
        )


@dataclass(kw_only=True)
class TransferSetConfig:
    """One dataset to transfer to."""

    name: str
    """What its column is called."""
    train_images: SourceConfig = field(default_factory=SourceConfig)
    """Labelled images that the probe is fitted on."""
    heldout_images: SourceConfig = field(default_factory=SourceConfig)
    """Labelled images that it is judged on."""
    measure: Literal["accuracy", "class_mean"] = "accuracy"
    """Share of the images that are right, or the mean over classes of that share: what is usual for
    Aircraft, Caltech-101, Flowers and Pets."""


@dataclass(kw_only=True)
class TransferConfig:
    """A linear probe on each of several datasets, and its mean over them."""

    datasets: list[TransferSetConfig] = field(default_factory=list)
    """The datasets, of any kind of source: torchvision, parquet, folder ..."""
    probe: FrozenProbeConfig = field(default_factory=FrozenProbeConfig)
    """The probe: logistic regression on frozen features, its penalty chosen on images kept out."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        names = [each.name for each in self.datasets]
        twice = sorted({name for name in names if names.count(name) > 1} | ({""} & set(names)))
        if twice:
            return [Problem("datasets", f"the names {twice}", "a name of its own for each")]
        return []


@dataclass(kw_only=True)
class PicturesConfig:
    """Pictures of embeddings of held-out images; labels colour them where there are any."""

    reads: ClassVar = (
        Table(
            "kinds",
            {
                "embedding": "method perplexity",
                "neighbours": "queries shown",
                "clusters": "clusters shown",
                OWN: "",
            },
        ),
        Table("method", {"tsne": "perplexity"}),
    )

    kinds: list[Literal["embedding", "neighbours", "clusters"]] = field(
        default_factory=lambda: ["embedding", "neighbours", "clusters"]
    )
    """embedding: all images as points of a plane; neighbours: images with their nearest ones;
    clusters: the images nearest to each centre of k-means."""
    images: Annotated[int, Field(ge=10, le=20_000)] = 1000
    """Held-out images at most, class by class (count)."""
    method: Literal["tsne", "umap"] = "tsne"
    """How the plane is found; umap needs the package umap-learn."""
    perplexity: Annotated[float, Field(gt=1)] = 30.0
    """t-SNE's perplexity (about how many neighbours count)."""
    queries: Count = 8
    """Images whose neighbours are shown (count)."""
    clusters: Annotated[int, Field(ge=2, le=100)] = 10
    """Clusters (count)."""
    shown: Count = 10
    """Neighbours, or members of a cluster, that are shown (count)."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        problems = [] if self.kinds else [Problem("kinds", "[]", "at least one")]
        most = self.images
        if self.perplexity >= most:
            problems.append(Problem("perplexity", str(self.perplexity), f"below images, {most}"))
        return problems
