"""Settings of evaluation; no torch here, so that help and errors come at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distill.configs.embeddings import (
    ClusterAlignmentConfig,
    MmdConfig,
    PicturesConfig,
    TransferConfig,
)
from distill.configs.student import OwnClassConfig
from distill.configs.tasks import (
    TASKS,
    DetectionConfig,
    FewLabelConfig,
    FinetuneConfig,
    KnnConfig,
    LinearProbeConfig,
    SegmentationConfig,
)
from distill.configs.types import Seed
from distill.tables import name_problem
from dreamshard.config import FolderName
from dreamshard.config.reads import OWN, Table, When
from dreamshard.errors import Problem
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.teachers.base import TeacherConfig

IMAGES = "train_images heldout_images image"
EXTRACTING = {"few_label", "knn", "cluster_alignment", "mmd", "transfer", "pictures"}
"""Tasks that judge features which are extracted once."""
UNLABELLED = {"segmentation", "detection", "mmd", "transfer", "pictures"}
"""Tasks that do not read the classes of train_images and heldout_images."""
ELSEWHERE = {"detection", "transfer"}
"""Tasks whose images are others."""


@dataclass(kw_only=True)
class EvaluateConfig:
    """Measure what a trained student has learned."""

    main_settings: ClassVar[str] = """
    run_dir student tasks baselines seed device train_images.kind train_images.path
    train_images.split heldout_images.kind heldout_images.path heldout_images.split image.size
    teacher.kind teacher.path teacher.levels teacher.timesteps few_label.shots
    linear_probe.protocols finetune.fractions segmentation.classes segmentation.head
    detection.train_annotations detection.heldout_annotations
    """

    reads: ClassVar = (
        Table(
            "tasks",
            {
                "few_label": f"few_label {IMAGES}",
                "linear_probe": f"linear_probe {IMAGES}",
                "knn": f"knn {IMAGES}",
                "finetune": f"finetune {IMAGES}",
                "segmentation": f"segmentation {IMAGES}",
                "detection": "detection",
                "cluster_alignment": f"cluster_alignment {IMAGES}",
                "mmd": f"mmd {IMAGES}",
                "transfer": f"transfer {IMAGES}",
                "pictures": f"pictures {IMAGES}",
                OWN: IMAGES,
            },
        ),
        Table("baselines", {"teacher": "teacher"}),
        When(
            "by few_label, knn, cluster_alignment, mmd, transfer, pictures and protocol lbfgs of "
            "linear_probe",
            "pool micro_batch",
            lambda config: config.extracts,
            "tasks",
        ),
    )

    run_dir: FolderName = "runs/evaluate"
    """Folder of this run: results.json and what made it."""
    student: str = "runs/train"
    """Run folder of `dreamshard train`, or the folder of an exported student."""
    own_class: OwnClassConfig = field(default_factory=OwnClassConfig)
    """The student's class, where it is one of your own."""
    tasks: list[str] = field(default_factory=lambda: ["few_label"])
    """What to measure: few_label, linear_probe, knn, finetune, segmentation, detection,
    cluster_alignment, mmd, transfer, pictures, or module:Class; settings are in the section of that
    name."""
    baselines: list[Literal["pixels", "teacher", "random"]] = field(
        default_factory=lambda: ["pixels", "teacher", "random"]
    )
    """Compare with: pixels, the teacher's pooled features, the student before training (with its
    own or with measured batch statistics, by what training images say)."""
    seed: Seed = 0
    """Seed of the label draws and of the teacher's noise."""
    train_images: SourceConfig = field(default_factory=SourceConfig)
    """Labelled images that probes are fitted on."""
    heldout_images: SourceConfig = field(default_factory=SourceConfig)
    """Labelled images that probes are judged on."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are brought to size; size 0 for that of the student's training."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The student's own teacher, with the levels and timesteps it was distilled from."""
    pool: Literal["all", "last"] = "all"
    """A student's pooled features: of all its maps side by side, or of the deepest alone."""
    few_label: FewLabelConfig = field(default_factory=FewLabelConfig)
    """Settings of the task few_label."""
    linear_probe: LinearProbeConfig = field(default_factory=LinearProbeConfig)
    """Settings of the task linear_probe."""
    knn: KnnConfig = field(default_factory=KnnConfig)
    """Settings of the task knn."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """Settings of the task finetune."""
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    """Settings of the task segmentation."""
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    """Settings of the task detection."""
    cluster_alignment: ClusterAlignmentConfig = field(default_factory=ClusterAlignmentConfig)
    """Settings of the task cluster_alignment."""
    mmd: MmdConfig = field(default_factory=MmdConfig)
    """Settings of the task mmd."""
    transfer: TransferConfig = field(default_factory=TransferConfig)
    """Settings of the task transfer; train_images, where given, decide the statistics of the
    student before training."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """Settings of the task pictures."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where features are computed; auto: CUDA where there is one."""
    micro_batch: Annotated[int, Field(ge=1, le=65536)] = 64
    """Images per forward pass (count)."""

    @property
    def extracts(self) -> bool:
        """Whether a task may ask for features that are extracted once."""
        several = set(self.tasks)
        if several & EXTRACTING or any(":" in task for task in several):
            return True
        return "linear_probe" in several and "lbfgs" in self.linear_probe.protocols

    @property
    def classifies(self) -> bool:
        """Whether a task reads the images' labels; those of the user's own are taken to."""
        return bool(set(self.tasks) - UNLABELLED)

    @property
    def reads_images(self) -> bool:
        """Whether a task reads train_images and heldout_images; the user's own are taken to."""
        return bool(set(self.tasks) - ELSEWHERE)

    def task_settings(self, task: str) -> object | None:
        """Return the section of a task; None for a task of the user's own."""
        return {
            "few_label": self.few_label,
            "linear_probe": self.linear_probe,
            "knn": self.knn,
            "finetune": self.finetune,
            "segmentation": self.segmentation,
            "detection": self.detection,
            "cluster_alignment": self.cluster_alignment,
            "mmd": self.mmd,
            "transfer": self.transfer,
            "pictures": self.pictures,
        }.get(task)

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        unknown = [name_problem(task, table=TASKS, key="tasks") for task in self.tasks]
        problems = [problem for problem in unknown if problem is not None]
        if not self.tasks:
            problems.append(Problem("tasks", "[]", "one task or more", "Try --tasks [knn]."))
        if "segmentation" in self.tasks and not self.segmentation.classes:
            hint = "Name the classes of the masks, in order of their numbers."
            problems.append(Problem("segmentation.classes", "[]", "two names or more", hint))
        if "mmd" in self.tasks and not self.mmd.is_given:
            hint = "Name them in mmd.synthetic_images, or a dataset of shards in mmd.dataset."
            problems.append(Problem("mmd.synthetic_images", "nothing", "synthetic images", hint))
        if "transfer" in self.tasks and not self.transfer.datasets:
            hint = "Each has a name, train_images and heldout_images."
            problems.append(Problem("transfer.datasets", "[]", "a dataset or more", hint))
        if "detection" in self.tasks:
            problems += [
                Problem(f"detection.{key}", "nothing", "a path")
                for key in ("train_annotations", "heldout_annotations")
                if not getattr(self.detection, key)
            ]
        if self.image.views != 1:
            problems.append(
                Problem("image.views", str(self.image.views), "1: a probe sees each once")
            )
        return problems
