"""Diffusion teachers of every family: noise an image, denoise it once, keep the features.

Encoding is stochastic by default: `x_t = signal_t x_0 + noise_t eps`, with `eps` drawn per sample
on the CPU (so any device sees the same noise) and shared by all timesteps of a draw, then one
forward pass per timestep and draw, ended as soon as the last requested tap is computed.
`settings.encoding: inversion` reaches the timestep by DDIM inversion instead (see `sampling.py`).

Synthesis draws an image with DDIM or DPM-Solver from seeded noise and rounds it to uint8. Its
features are those of *re-encoding* the rounded sample at the requested timesteps
(`settings.record: reencode`, the default: a synthesized record equals an encoded one of the same
picture), or those met on the way (`record: steps`), where the requested timesteps must be steps of
the sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from dreamshard import rng
from dreamshard.errors import DataError
from pipeline.teachers import sampling, taps
from pipeline.teachers.base import Mode, TeacherConfig, TeacherSpec
from pipeline.teachers.compiled import compile_blocks
from pipeline.teachers.diffusion_request import NO_CLASS, fingerprint, mode_settings, resolve
from pipeline.teachers.outbox import Outbox, as_recorded
from storage.schema import FeatureBatch, Pins

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Found = dict[str, Tensor] | Outbox

DRAWERS = 8
"""Threads that draw a batch's noise for a GPU."""


class DiffusionTeacher:
    """Run a frozen diffusion network; see the module's text for what is recorded.

    Args:
        config: the request; `path` is a folder of save_pretrained or a checkpoint file.
        mode: encode or synthesize.
        image_size: (height, width) in pixels, None for the network's own.
        seed: selects the noise, with the sample's index and the draw.
        pins: device, number format and threads of the forward pass.

    Source: DreamTeacher section 3.1; DESIGN.md section 6.
    """

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
        import torch

        self.request = resolve(config, mode=mode, image_size=image_size)
        self.description = self.request.description
        self.schedule = self.description.schedule
        self.levels = self.request.levels
        self.image_size = self.description.image_size
        self.fingerprint = fingerprint(self.description)
        self._seed, self._draws, self._mean = seed, self.request.draws, 1
        self._mean = self.request.number("mean_draws")
        if pins.threads > 0:
            torch.set_num_threads(pins.threads)
        self.device = torch.device(pins.device)
        # A GPU waits for its noise; on a CPU the cores are the network's.
        self._drawers = DRAWERS if self.device.type == "cuda" else 1
        self.dtype: torch.dtype = getattr(torch, pins.compute_dtype)
        self.network = self.description.load(self.dtype)
        self._layout = (
            torch.contiguous_format
            if self.request.settings["memory_format"] == "contiguous"
            else torch.channels_last
        )
        torch.nn.Module.to(self.network.module, device=self.device)
        self.network.module.to(memory_format=self._layout)  # type: ignore[call-overload]
        if self.request.settings["compile"]:
            compile_blocks(self.network.module)
        by_name = {tap.name: tap for tap in self.description.taps}
        wanted = dict.fromkeys(level.tap for level in self.levels)
        self._recorder = taps.Recorder(self.network.module, [by_name[name] for name in wanted])

    @classmethod
    def describe(
        cls, config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None
    ) -> TeacherSpec:
        """Resolve a request from small files; see `base.TeacherClass.describe`."""
        request = resolve(config, mode=mode, image_size=image_size)
        return TeacherSpec(
            levels=request.levels,
            image_size=request.description.image_size,
            fingerprint=fingerprint(request.description),
            mode_settings=mode_settings(request, mode),
            licence=request.description.licence,
        )

    def encode(self, images: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        """Record the features of images; see `pipeline.teachers.base.Teacher.encode`."""
        import torch

        found = Outbox(self.device)
        self._encode(found, torch.from_numpy(np.ascontiguousarray(images)), indices)
        return self._batch(found, indices, None, None)

    def features(self, images: Tensor, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the recorded levels as tensors on the teacher's device, for use without storage.

        Args:
            images: uint8 (N, H, W, 3) on any device, at `image_size`.
            indices: int64 (N,).

        Returns:
            level name -> float16 tensor (N, *level.shape), the very numbers `encode` records.
        """
        found: dict[str, Tensor] = {}
        self._encode(found, images, indices)
        return found

    def _encode(self, found: Found, images: Tensor, indices: np.ndarray) -> None:
        import torch

        self._check_images(images)
        with torch.inference_mode():
            labels = self._labels(len(images), fixed=True, indices=indices)
            self._record(found, images.to(self.device), labels, indices)

    def _record(
        self, found: Found, images: Tensor, labels: Tensor | None, indices: np.ndarray
    ) -> None:
        """Bring images uint8 (N, H, W, 3) to the requested timesteps and record there."""
        import torch

        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        x0 = self.network.to_space(pixels.contiguous(memory_format=self._layout))
        if self.request.settings["encoding"] == "inversion":
            self._invert(found, x0, labels)
        else:
            self._noise(found, x0, labels, indices)

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        """Draw samples and record features; see `pipeline.teachers.base.Teacher.synthesize`."""
        import torch

        settings = self.request.settings
        fixed = settings["class_label"] is not None
        labels = self._labels(len(indices), fixed=fixed, indices=indices)
        found = Outbox(self.device)

        def visit(x: Tensor, timestep: int) -> None:
            if settings["record"] == "steps" and timestep in self.request.timesteps:
                self._keep(found, self.activations(x, timestep, labels), timestep, 0)

        def fresh(rung: int) -> Tensor:
            return self._normal(indices, rung + 1, "sample")

        with torch.inference_mode():
            walk = sampling.SamplerSettings(
                name=str(settings["sampler"]),
                eta=float(cast(float, settings["eta"])),
                clip=not self.description.latent,
                visit=visit,
            )
            x = self._normal(indices, 0, "sample")
            steps = self.request.sampler_timesteps()
            x0 = sampling.sample(self.schedule, self._denoiser(labels), x, steps, walk, fresh)
            pixels = self.network.to_pixels(x0).float().clip(-1, 1)
            images = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
            if settings["record"] == "reencode":
                self._record(found, images, labels, indices)
        return self._batch(found, indices, images, labels)

    def denoise(self, x_t: Tensor, timestep: int, labels: Tensor | None = None) -> Tensor:
        """Run the whole network once and return its raw output as float32 (N, C', H, W).

        Args:
            x_t: (N, C, H, W) noisy image or latent.
            timestep: original timestep of the schedule.
            labels: int64 (N,), for class-conditional networks.
        """
        return self._forward(x_t, timestep, labels).float()

    def activations(
        self, x_t: Tensor, timestep: int, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run the network as far as the requested taps and return tap -> map (N, C, H, W)."""
        found, _ = self._recorder.run(lambda: self._forward(x_t, timestep, labels))
        return found

    def _forward(self, x_t: Tensor, timestep: int, labels: Tensor | None) -> Tensor:
        import torch

        x = self.schedule.model_input(x_t, timestep)
        x = x.to(device=self.device, dtype=self.dtype, memory_format=self._layout)
        told = float(self.schedule.time[timestep])
        kind = torch.int64 if told.is_integer() else torch.float32
        time = torch.full((len(x),), told, dtype=kind, device=self.device)
        return self.network(x, time, labels)

    def _denoiser(self, labels: Tensor | None) -> Callable[[Tensor, int], Tensor]:
        def denoise(x_t: Tensor, timestep: int) -> Tensor:
            # Networks that also predict a variance do so in further channels.
            return self.denoise(x_t, timestep, labels)[:, : x_t.shape[1]]

        return denoise

    def _noise(self, found: Found, x0: Tensor, labels: Tensor | None, indices: np.ndarray) -> None:
        for draw in range(self._draws):
            sums: dict[int, dict[str, Tensor]] = {}
            for part in range(self._mean):
                eps = self._normal(indices, draw * self._mean + part, "noise")
                for timestep in self.request.timesteps:
                    x_t = self.schedule.add_noise(x0, eps, timestep)
                    maps = self.activations(x_t, timestep, labels)
                    if self._mean > 1:
                        maps = _add(sums.get(timestep), maps, 1 / self._mean)
                    sums[timestep] = maps
            for timestep, maps in sums.items():
                self._keep(found, maps, timestep, draw)

    def _invert(self, found: Found, x0: Tensor, labels: Tensor | None) -> None:
        def visit(x: Tensor, timestep: int) -> None:
            if timestep in self.request.timesteps:
                self._keep(found, self.activations(x, timestep, labels), timestep, 0)

        steps = self.request.inversion_timesteps()
        sampling.invert(self.schedule, self._denoiser(labels), x0, steps, visit)

    def _keep(self, found: Found, maps: dict[str, Tensor], timestep: int, draw: int) -> None:
        """Pool and convert what was recorded while it is still on the device."""
        for level in self.levels:
            if level.timestep != timestep or level.draw != draw:
                continue
            found[level.name] = as_recorded(maps[level.tap], level)

    def _normal(self, indices: np.ndarray, draw: int, purpose: str) -> Tensor:
        import torch

        drawn = rng.normal(
            self._seed, indices, draw, purpose, self.description.space, threads=self._drawers
        )
        return torch.from_numpy(drawn).to(self.device)

    def _labels(self, rows: int, *, fixed: bool, indices: np.ndarray) -> Tensor | None:
        import torch

        classes, label = self.description.classes, self.request.settings["class_label"]
        if fixed and label == NO_CLASS:
            label = self.description.null_class
        if not classes or (fixed and label is None):
            return None
        if fixed:
            values = np.full(rows, int(cast(int, label)), np.int64)
        else:
            values = rng.integers(self._seed, indices, 0, "class", (), classes)
        return torch.from_numpy(values).to(self.device)

    def _check_images(self, images: Tensor) -> None:
        expected = (*self.image_size, 3)
        if tuple(images.shape[1:]) != expected or images.element_size() != 1:
            raise DataError(
                f"images: got {tuple(images.shape[1:])} of {images.dtype}, allowed {expected} of "
                "uint8 RGB. Resize and convert them first (pipeline.images does)."
            )

    def _batch(
        self,
        found: Outbox,
        indices: np.ndarray,
        images: Tensor | None,
        labels: Tensor | None,
    ) -> FeatureBatch:
        levels = found.collect()
        return FeatureBatch(
            index=np.asarray(indices, np.int64),
            key=[f"{index:08d}" for index in indices],
            valid=np.ones(len(indices), bool),
            image=None if images is None else np.ascontiguousarray(images.cpu().numpy()),
            levels={level.name: levels[level.name] for level in self.levels},
            label=None if labels is None or images is None else labels.cpu().numpy(),
        )


def _add(
    total: dict[str, Tensor] | None, maps: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    scaled = {name: value.float() * share for name, value in maps.items()}
    return scaled if total is None else {name: total[name] + scaled[name] for name in scaled}
