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

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dreamshard import rng
from dreamshard.errors import DataError
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion import request, sampling
from pipeline.teachers.diffusion.ahead import Draw, NoiseAhead
from pipeline.teachers.diffusion.families import find_family
from pipeline.teachers.diffusion.networks.description import Description
from pipeline.teachers.diffusion.networks.vae import LATENT
from pipeline.teachers.pixels import signed, to_uint8
from pipeline.teachers.recording.compiled import compile_blocks
from pipeline.teachers.recording.outbox import Outbox
from pipeline.teachers.recording.teacher import NetworkTeacher
from storage.schema import FeatureBatch, Pins

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.teachers.recording.teacher import Records


DRAWERS = 8
"""Threads that draw a batch's noise for a GPU (count)."""


class DiffusionTeacher(NetworkTeacher):
    """Run a frozen diffusion network; see the module's text for what is recorded.

    `path` is a folder of save_pretrained or a checkpoint file; the seed selects the noise, with the
    sample's index and the draw.

    Source: DreamTeacher section 3.1; DESIGN.md section 6.
    """

    SETTINGS = request.SETTINGS
    CHOICES = request.CHOICES
    LOWEST = request.LOWEST
    request_class = request.DiffusionRequest

    @classmethod
    def find(cls, path: Path) -> tuple[Mapping[str, Scalar], Any]:
        """Find the family of a path; see `NetworkTeacher.find`."""
        family, path = find_family(path)
        return family.SETTINGS, functools.partial(family.describe, path)

    def load(self, pins: Pins) -> None:
        """Load the network in the layout and compiled as asked for."""
        import torch

        super().load(pins)
        self.description: Description
        self.schedule, settings = self.description.schedule, self.request.settings
        contiguous = settings["memory_format"] == "contiguous"
        self._layout = torch.contiguous_format if contiguous else torch.channels_last
        self.network.module.to(memory_format=self._layout)
        self._mean = self.request.number("mean_draws")
        self._noise_ahead = NoiseAhead(self.seed, self.description.space)
        if settings["compile"]:
            compile_blocks(self.network.module, key="teacher.compile")

    def foresee(self, indices: np.ndarray) -> object:
        """Draw the noise of a micro-batch ahead; see `pipeline.teachers.base.foreseer`."""
        if self.description.clean:
            return None
        settings, draws = self.request.settings, self.request.config.draws * self._mean
        wanted: list[Draw] = []
        if self.request.mode == "synthesize":
            wanted.append(("sample", 0))
        if self.request.mode == "encode" or settings["record"] == "reencode":
            wanted += [("noise", draw) for draw in range(draws)]
        if settings["encoding"] == "inversion":
            wanted = [draw for draw in wanted if draw[0] != "noise"]
        return self._noise_ahead.draw(indices, wanted)

    def record_images(self, records: Records, images: Tensor, indices: np.ndarray) -> None:
        """Record what one pass per timestep and draw gives, under the request's class."""
        self._record(records, images, self._labels(indices), indices)

    def encode_latents(self, latents: np.ndarray, indices: np.ndarray) -> FeatureBatch:
        """Record the features of images whose latents were kept; the autoencoder is not run.

        Args:
            latents: floats (N, C, h, w), as the level `latent` has them.
            indices: int64 (N,), the samples' places in the dataset; they select the noise.

        Raises:
            DataError: latents of another shape.
        """
        import torch

        if tuple(latents.shape[1:]) != self.description.space or not self.description.latent:
            raise DataError(
                f"latents: got {latents.shape[1:]}, allowed {self.description.space} of this "
                "teacher at this image size."
            )
        records = Outbox(self.device)
        with torch.inference_mode():
            x0 = torch.from_numpy(np.ascontiguousarray(latents)).to(self.device).float()
            x0 = x0.contiguous(memory_format=self._layout)
            self._record_from(records, x0, self._labels(indices), indices)
        return self.batch(indices, records.collect())

    def _record(
        self, records: Records, images: Tensor, labels: Tensor | None, indices: np.ndarray
    ) -> None:
        """Bring images uint8 (N, H, W, 3) to the requested timesteps and record there."""
        x0 = self.network.to_space(signed(images).contiguous(memory_format=self._layout))
        self._record_from(records, x0, labels, indices)

    def _record_from(
        self, records: Records, x0: Tensor, labels: Tensor | None, indices: np.ndarray
    ) -> None:
        """Keep x_0 (N, C, H, W) where it is asked for, and record at the requested timesteps."""
        if self.description.latent:
            self.keep(records, {LATENT: x0})
        if self.description.clean:
            self.keep(records, self.activations(x0, 0, labels))
            return
        if not self.request.timesteps:
            return
        if self.request.settings["encoding"] == "inversion":
            self._invert(records, x0, labels)
        else:
            self._noise(records, x0, labels, indices)

    def synthesize(self, indices: np.ndarray) -> FeatureBatch:
        """Draw samples and record features; see `pipeline.teachers.base.Teacher.synthesize`."""
        import torch

        settings = self.request.settings
        labels = self._labels(indices, drawn=settings["class_label"] is None)
        records = Outbox(self.device)

        def visit(x: Tensor, timestep: int) -> None:
            if settings["record"] == "steps" and timestep in self.request.timesteps:
                self.keep(records, self.activations(x, timestep, labels), timestep=timestep)

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
            images = to_uint8(self.network.to_pixels(x0))
            if settings["record"] == "reencode":
                self._record(records, images, labels, indices)
            elif self.description.latent:
                self.keep(records, {LATENT: x0})
        return self.batch(
            indices,
            records.collect(),
            image=np.ascontiguousarray(images.cpu().numpy()),
            label=labels.cpu().numpy() if self.request.has_labels and labels is not None else None,
        )

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
        maps, _ = self._recorder.run(lambda: self._forward(x_t, timestep, labels))
        return maps

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

    def _noise(
        self, records: Records, x0: Tensor, labels: Tensor | None, indices: np.ndarray
    ) -> None:
        for draw in range(self.request.config.draws):
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
                self.keep(records, maps, timestep=timestep, draw=draw)

    def _invert(self, records: Records, x0: Tensor, labels: Tensor | None) -> None:
        def visit(x: Tensor, timestep: int) -> None:
            if timestep in self.request.timesteps:
                self.keep(records, self.activations(x, timestep, labels), timestep=timestep)

        steps = self.request.inversion_timesteps()
        sampling.invert(self.schedule, self._denoiser(labels), x0, steps, visit)

    def _normal(self, indices: np.ndarray, draw: int, purpose: str) -> Tensor:
        import torch

        # A GPU waits for its noise; on a CPU the cores are the network's.
        threads = DRAWERS if self.device.type == "cuda" else 1
        drawn = self._noise_ahead.take(indices, (purpose, draw), threads=threads)
        return torch.from_numpy(drawn).to(self.device)

    def _labels(self, indices: np.ndarray, *, drawn: bool = False) -> Tensor | None:
        """Return each sample's class, drawn or that of the request; None for no class."""
        import torch

        classes, label = self.description.classes, self.request.settings["class_label"]
        if label == request.NO_CLASS:
            label = self.description.null_class
        if classes and drawn:
            values = rng.integers(self.seed, indices, 0, "class", (), classes)
        elif classes and label is not None:
            values = np.full(len(indices), label, np.int64)
        else:
            return None
        return torch.from_numpy(values).to(self.device)


def _add(
    total: dict[str, Tensor] | None, maps: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    scaled = {name: value.float() * share for name, value in maps.items()}
    return scaled if total is None else {name: total[name] + scaled[name] for name in scaled}
