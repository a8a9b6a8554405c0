"""What teachers share, from the request to the record.

`BaseTeacher` settles a request and makes batches. `NetworkTeacher` adds a network: its description,
its place on a device, the taps that record it and the way from images to a batch. A kind of teacher
is a subclass that says how to `find` the network and what to do with images or indices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dreamshard.errors import ConfigError, DataError, Problem, TeacherError
from dreamshard.foreign import trusted
from dreamshard.foreign.guard import reason
from pipeline.teachers import weights
from pipeline.teachers.base import Flag, Mode, Scalar, TeacherConfig, TeacherSpec, guesses
from pipeline.teachers.recording.outbox import Outbox, as_recorded
from pipeline.teachers.recording.taps import Recorder, Tap, costs, table
from pipeline.teachers.request import NO_TIMESTEP, check_settings, expand_levels
from storage.schema import FeatureBatch, Level, Pins

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Records = dict[str, Tensor] | Outbox


DTYPES = ("float32", "bfloat16", "float16")
ODD = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What code for tensors of some shapes raises for others, beside torch's RuntimeError."""
MAX_SIDE = 1 << 14
"""Height or width of a network's images (pixels)."""


@contextmanager
def _judged(path: object) -> Iterator[None]:
    """Raise a TeacherError with the file's name for what its shapes and values make go wrong."""
    try:
        yield
    except (*ODD, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which describing does not load
            raise
        why = f"{type(error).__name__}: {reason(error)}"
        raise TeacherError(f"{path}: not a network as its kind has them ({why}).") from error


class Resolved(Protocol):
    """A checked request."""

    @property
    def spec(self) -> TeacherSpec:
        """Return what will be recorded."""
        ...


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """Everything known about a network before its weights are loaded."""

    family: str
    image_size: tuple[int, int]
    """Height and width in pixels."""
    taps: tuple[Tap, ...]
    aliases: Mapping[str, str]
    """Further names of taps, `s8` -> `up.1`."""
    weights: tuple[Path, ...]
    """Files that decide the fingerprint."""
    architecture: Mapping[str, Any]
    """JSON-able facts that decide the computation, flags included."""
    load: Callable[[torch.dtype], Any]
    """Reads the weights; returns a callable whose `module` holds the taps."""
    classes: int = 0
    """Number of class labels the network is conditioned on; 0 = none."""
    notes: tuple[str, ...] = ()
    """Sentences worth showing in an inspection."""
    flags: tuple[Flag, ...] = ()
    """What decides the features and is not in the weights; part of the fingerprint."""

    def __post_init__(self) -> None:
        """Refuse images of a size that shapes in a file make up."""
        if not 0 < min(self.image_size) <= max(self.image_size) <= MAX_SIDE:
            where, bits = self.origin, max(self.image_size).bit_length()
            told = f"2^{bits - 1} or more pixels" if bits > 60 else f"{self.image_size} pixels"
            raise TeacherError(f"{where}: describes images of {told}, allowed up to {MAX_SIDE:,}.")

    @property
    def origin(self) -> object:
        """Return what errors name: the weights' file, or the family where weights are drawn."""
        return self.weights[0] if self.weights else self.family

    @property
    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the network: family, digests, and the flags by name."""
        told = {flag.name: flag.value for flag in sorted(self.flags, key=lambda flag: flag.name)}
        identity = weights.identity(self.family, self.weights, self.architecture)
        return {**identity, "flags": told} if told else identity

    def read(self, dtype: torch.dtype) -> Any:
        """Load the weights, as `load`.

        Raises: TeacherError for whatever a file of odd shapes makes go wrong.
        """
        with _judged(self.origin):
            return self.load(dtype)

    @property
    def licence(self) -> str:
        """Return the licence of the weights, as the card beside them says."""
        return weights.licence(self.weights[0].parent)

    @property
    def num_timesteps(self) -> int | None:
        """Return the diffusion steps, for families that have them (count)."""
        return None

    def summary(self) -> list[str]:
        """Say what it is in a few words, then in a line each what else it is told or works on."""
        return [f"{len(self.taps)} taps"]

    def costs(self, network: Any, told: Sequence[Tensor | None]) -> dict[str, int]:
        """Count the operations to reach each tap; see `taps.costs`.

        Args:
            network: loaded, on the meta device.
            told: `example`'s arguments there.
        """
        return costs(lambda: network(*told), network.module, self.taps)

    def example(self, device: str) -> tuple[Tensor | None, ...]:
        """Return arguments for a forward pass of one sample: an image, or the kind's own."""
        import torch

        return (torch.zeros((1, 3, *self.image_size), device=device),)


@dataclass(kw_only=True)
class NetworkRequest:
    """A request to a network; kinds of teachers add what they check."""

    config: TeacherConfig
    mode: Mode
    description: Any
    """A `NetworkDescription`, or the kind's own."""
    settings: dict[str, Scalar]
    """All of them, defaults filled in."""
    levels: tuple[Level, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Return whether samples that are drawn have classes."""
        return False

    def check(self) -> list[Problem | str]:
        """Settle the levels, and whatever settings the network decides; return what is wrong."""
        self.levels, problems = expand_levels(
            self.config,
            taps=table(self.description.taps, self.description.image_size),
            aliases=self.description.aliases,
            num_timesteps=self.description.num_timesteps,
        )
        return [*problems]

    def warnings(self) -> tuple[str, ...]:
        """Return sentences worth saying before this request is run."""
        return ()

    def mode_settings(self) -> dict[str, object]:
        """Return the settings that change recorded bytes in this mode, defaults filled in."""
        return dict(self.settings)

    @property
    def spec(self) -> TeacherSpec:
        """Return what the pipeline may know of a teacher of this request."""
        known = self.description
        return TeacherSpec(
            levels=self.levels,
            image_size=known.image_size,
            fingerprint=known.fingerprint,
            mode_settings=self.mode_settings(),
            has_labels=self.has_labels,
            licence=known.licence,
            notes=(*guesses(known.flags), *self.warnings()),
            flags=known.flags,
        )


class PlainNetwork:
    """A loaded network that takes what it is given."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *told: Tensor | None) -> Tensor:
        """Run one forward pass."""
        return self.module(*told)


Describe = Callable[[Mapping[str, Scalar], tuple[int, int] | None], NetworkDescription]
"""(checked settings, image size asked for) -> description; small files only, ConfigError for
settings that contradict them, TeacherError for unusable ones."""


class BaseTeacher(ABC):
    """Settle a request; arguments as those of `load_teacher`."""

    modes: tuple[Mode, ...] = ("encode", "synthesize")

    def __init__(
        self,
        config: TeacherConfig,
        *,
        mode: Mode,
        image_size: tuple[int, int] | None,
        seed: int,
        pins: Pins,
    ) -> None:
        self.request: Any = self.resolve(config, mode=mode, image_size=image_size)
        spec: TeacherSpec = self.request.spec
        self.levels, self.image_size, self.fingerprint = (
            spec.levels,
            spec.image_size,
            spec.fingerprint,
        )
        self.seed = seed
        self.load(pins)

    @classmethod
    @abstractmethod
    def resolve(
        cls, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
    ) -> Resolved:
        """Check a request from small files; arguments and errors as `TeacherClass.describe`."""

    @classmethod
    def describe(
        cls, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
    ) -> TeacherSpec:
        """Resolve a request without loading weights; see `base.TeacherClass.describe`."""
        return cls.resolve(config, mode=mode, image_size=image_size).spec

    @abstractmethod
    def load(self, pins: Pins) -> None:
        """Load what `request` asks for."""

    def batch(
        self,
        indices: np.ndarray,
        levels: Mapping[str, np.ndarray],
        *,
        image: np.ndarray | None = None,
        label: np.ndarray | None = None,
    ) -> FeatureBatch:
        """Return a batch of what was recorded, levels in the order of the request."""
        return FeatureBatch(
            index=np.asarray(indices, np.int64),
            key=[f"{index:08d}" for index in indices],
            valid=np.ones(len(indices), bool),
            image=image,
            levels={level.name: levels[level.name] for level in self.levels},
            label=label,
        )


class NetworkTeacher(BaseTeacher):
    """Run a frozen network and record its taps."""

    SETTINGS: Mapping[str, Scalar] = {}
    """Settings of every network of this kind with their defaults; `find` adds its own."""
    CHOICES: Mapping[str, tuple[str, ...]] = {}
    """Setting -> the words it may be."""
    LOWEST: Mapping[str, float] = {}
    """Setting -> the least it may be."""
    request_class: type[NetworkRequest] = NetworkRequest

    @classmethod
    @abstractmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Describe]:
        """Return the settings, with defaults, that the network at a path has, and its describer.

        Raises:
            ConfigError: nothing at that path.
            TeacherError: no network of this kind.
        """

    @classmethod
    def look_up(
        cls, config: TeacherConfig, image_size: tuple[int, int] | None
    ) -> tuple[Any, dict[str, Scalar], list[Problem | str]]:
        """Describe the network of a request.

        Returns:
            the description, all settings, and what is wrong with those given.
        """
        with _judged(config.path):
            own, describe = cls.find(Path(config.path))
        settings, problems = check_settings(
            config, {**cls.SETTINGS, **own}, choices=cls.CHOICES, lowest=cls.LOWEST
        )
        try:
            with _judged(config.path):
                return describe(settings, image_size), settings, [*problems]
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems]) from error

    @classmethod
    def resolve(
        cls, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
    ) -> NetworkRequest:
        """Check a request against the network that its path holds."""
        description, settings, problems = cls.look_up(config, image_size)
        request = cls.request_class(
            config=config, mode=mode, description=description, settings=settings
        )
        problems += request.check()
        if problems:
            raise ConfigError(problems)
        return request

    def load(self, pins: Pins) -> None:
        """Load the network onto its device and hook the taps that the levels need."""
        import torch

        self.description = self.request.description
        if pins.threads > 0:
            torch.set_num_threads(pins.threads)
        self.device, self.dtype = (
            torch.device(pins.device),
            trusted.attribute(torch, pins.compute_dtype, allowed=DTYPES),
        )
        self.network = self.description.read(self.dtype)
        # torch's own `to`: that of diffusers warns about modules it would keep in float32.
        torch.nn.Module.to(self.network.module, device=self.device)
        by_name = {tap.name: tap for tap in self.description.taps}
        wanted = [by_name[name] for name in dict.fromkeys(level.tap for level in self.levels)]
        self._recorder = Recorder(self.network.module, [tap for tap in wanted if tap.module])

    def encode(self, images: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        """Record the features of images; see `pipeline.teachers.base.Teacher.encode`."""
        import torch

        records = Outbox(self.device)
        self._encode(records, torch.from_numpy(np.ascontiguousarray(images)), indices)
        return self.batch(indices, records.collect())

    def features(self, images: Tensor, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the recorded levels as tensors on the teacher's device, for use without storage.

        Args:
            images: uint8 (N, H, W, 3) on any device, at `image_size`.
            indices: int64 (N,).

        Returns:
            level name -> float16 tensor (N, *level.shape), the very numbers `encode` records.
        """
        records: dict[str, Tensor] = {}
        self._encode(records, images, indices)
        return records

    def _encode(self, records: Records, images: Tensor, indices: np.ndarray) -> None:
        import torch

        expected = (*self.image_size, 3)
        if tuple(images.shape[1:]) != expected or images.element_size() != 1:
            raise DataError(
                f"images: got {tuple(images.shape[1:])} of {images.dtype}, allowed {expected} of "
                "uint8 RGB. Resize and convert them first (pipeline.images.source does)."
            )
        with torch.inference_mode():
            self.record_images(records, images.to(self.device), indices)

    def record_images(self, records: Records, images: Tensor, indices: np.ndarray) -> None:
        """Run the network on images uint8 (N, H, W, 3) and `keep` what it gives."""
        raise TeacherError(f"teacher {self.description.family}: it cannot look at given images.")

    def activations(self, *told: Any) -> dict[str, Tensor]:
        """Run the network as far as the requested taps; return tap -> map (N, C, H, W)."""
        maps, _ = self._recorder.run(lambda: self.network(*told))
        return maps

    def keep(
        self,
        records: Records,
        maps: Mapping[str, Tensor],
        *,
        timestep: int = NO_TIMESTEP,
        draw: int = 0,
    ) -> None:
        """Pool and convert the maps of a pass, tap -> (N, C, H, W), while still on the device."""
        for level in self.levels:
            if level.timestep == timestep and level.draw == draw:
                records[level.name] = as_recorded(maps[level.tap], level)
