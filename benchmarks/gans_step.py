"""Compare steps of the adversarial trainer with a bare PyTorch loop: same networks, losses, batch.

    python benchmarks/gans_step.py [--kinds ssgan bigbigan stylegan2] [--rounds 5] [--steps 60]
    python benchmarks/gans_step.py --device cuda --rounds 3    # at the recipes' widths

The bare loop is the one anyone would write first: images in memory as float32 tensors, torch's own
random numbers, a moving average by `torch._foreach_lerp_`. The trainer runs as a user starts it, on
the digits at 32 pixels: it decodes, draws by position, logs and checks. Rounds alternate, so that a
drifting machine shifts both; the figures are the medians of the rounds' ratios, by the clock and by
the CPU time of the whole process (all its threads), which on a shared machine is the one to trust.
Prints a line per round and, last, one JSON object, which --out also writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import logging
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import pretrain
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.pretraining.adversarial import kinds
from pipeline.learning.pretraining.adversarial.bigbigan.config import BigBiGANConfig, EncoderConfig
from pipeline.learning.pretraining.adversarial.objective import Facts
from pipeline.learning.pretraining.adversarial.play import Players
from pipeline.learning.pretraining.adversarial.ssgan.config import SSGANConfig
from pipeline.learning.pretraining.adversarial.stylegan2.config import StyleGAN2Config
from pipeline.learning.pretraining.config import PretrainConfig

SIDE, SKIP = 32, 20
"""Pixels, and steps at the beginning of a round that do not count: caches fill, threads start."""
SECTIONS: dict[str, Any] = {
    "ssgan": SSGANConfig(channels=32, discriminator_channels=32, latent=64),
    "stylegan2": StyleGAN2Config(
        channel_base=1024, channel_max=32, latent=64, statistics_group=8, ema_half_life=50_000
    ),
    "bigbigan": BigBiGANConfig(
        channels=16, discriminator_channels=16, latent=32, shared=16, width=64, attention=0,
        encoder=EncoderConfig(filters=16, units=[1, 1, 1], stem=3, perceptron=[64]),
    ),
}  # fmt: skip
AT_RECIPES_WIDTH: dict[str, Any] = {
    "ssgan": SSGANConfig(),
    "stylegan2": StyleGAN2Config(),
    "bigbigan": BigBiGANConfig(
        channels=32, discriminator_channels=32, latent=64, shared=64, width=256, attention=0,
        encoder=EncoderConfig(filters=32, units=[2, 2, 2], stem=3, perceptron=[256, 256]),
    ),
}  # fmt: skip
"""For a GPU, which would wait for Python at the widths above."""
Turns = Callable[[Any, Tensor, int], tuple[list[Callable[[], Tensor]], Callable[[], Tensor]]]


def ssgan(objective: Any, x: Tensor, step: int) -> tuple[list[Callable[[], Tensor]], Any]:
    """Return the losses of a step of SS-GAN: the discriminator's, and the generator's."""
    up, down = objective.networks["generator"], objective.networks["discriminator"]
    config, count = objective.config, len(x)

    def rotated(images: Tensor) -> tuple[Tensor, Tensor]:
        some = images[-(count // 4) :]
        turned = [torch.rot90(some, times, (2, 3)) for times in (1, 2, 3)]
        return torch.cat([images, *turned]), torch.arange(4, device=x.device).repeat_interleave(
            len(some)
        )

    def judge() -> Tensor:
        with torch.no_grad():
            fake = up(torch.randn(count, config.latent, device=x.device), None, None)
        images, labels = rotated(x)
        pooled = down.pooled(torch.cat([images, fake]))
        score, rotations = down.logit(pooled), down.rotation(pooled[: len(images)])
        hinge = F.relu(1 - score[:count]).mean() + F.relu(1 + score[len(images) :]).mean()
        return hinge + config.beta * F.cross_entropy(rotations[-len(labels) :], labels)

    def make() -> Tensor:
        images, labels = rotated(up(torch.randn(count, config.latent, device=x.device), None, None))
        pooled = down.pooled(images)
        told = F.cross_entropy(down.rotation(pooled)[-len(labels) :], labels)
        return -down.logit(pooled)[:count].mean() + config.alpha * told

    return [judge] * config.discriminator_steps, make


def stylegan2(objective: Any, x: Tensor, step: int) -> tuple[list[Callable[[], Tensor]], Any]:
    """Return the losses of a step of StyleGAN2: the discriminator's, R1's where due, and G's."""
    up, down, config = objective.generator, objective.discriminator, objective.config
    average = up.network.mapping.w_avg

    def generate() -> Tensor:
        noise = [
            torch.randn(len(x), 1, layer.side, layer.side, device=x.device)
            for layer in up.network.synthesis.noisy_layers()
        ]
        images, w = up(torch.randn(len(x), config.latent, device=x.device), None, noise)
        with torch.no_grad():
            average.lerp_(w.detach().mean(0), 0.002)
        return images

    def judge() -> Tensor:
        fake = generate().detach()
        return F.softplus(-down(x, None)).mean() + F.softplus(down(fake, None)).mean()

    def penalise() -> Tensor:
        images = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(down(images, None).sum(), images, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean()
        return penalty * config.r1_gamma / 2 * config.r1_every

    def make() -> Tensor:
        return F.softplus(-down(generate(), None)).mean()

    return [judge, *[penalise] * (step % config.r1_every == 0)], make


def bigbigan(objective: Any, x: Tensor, step: int) -> tuple[list[Callable[[], Tensor]], Any]:
    """Return the losses of a step of BigBiGAN: the discriminators', and E's and G's."""
    networks, config = objective.networks, objective.config
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def score() -> tuple[dict[str, Tensor], int]:
        told = networks["encoder"](x)
        own = told.mean + told.stdev * torch.randn_like(told.mean)
        z = torch.randn(len(x), config.latent, device=x.device)
        return networks["discriminator"], (x, own, networks["generator"](z, labels, None), z)  # type: ignore[return-value]

    def both(with_gradients: bool) -> Any:
        with torch.set_grad_enabled(with_gradients):
            down, (images, own, fake, z) = score()  # type: ignore[misc]
        return down(torch.cat([images, fake]), torch.cat([own, z]))  # type: ignore[operator]

    def judge() -> Tensor:
        told = both(False).values()
        return torch.stack(
            [F.relu(1 - v[: len(x)]).mean() + F.relu(1 + v[len(x) :]).mean() for v in told]
        ).sum()

    def make() -> Tensor:
        told = both(True).values()
        return torch.stack([v[: len(x)].mean() - v[len(x) :].mean() for v in told]).sum()

    return [judge] * config.discriminator_steps, make


LOOPS: dict[str, Turns] = {"ssgan": ssgan, "stylegan2": stylegan2, "bigbigan": bigbigan}


class Clock:
    """Note when steps begin, once what is queued on a device is done.

    Args:
        device: cpu or cuda.
        last: step (1, 2, ...) whose beginning ends the measurement; step SKIP + 1 begins it.
    """

    def __init__(self, device: str, last: int) -> None:
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.last, self.marks = last, []

    def begins(self, step: int) -> None:
        """Note a step's beginning."""
        if step in (SKIP + 1, self.last):
            self.wait()
            self.marks.append((time.perf_counter(), time.process_time()))

    def per_step(self) -> dict[str, float]:
        """Return the seconds of a step, of the clock and of the CPU."""
        (wall, cpu), (wall_end, cpu_end) = self.marks
        count = self.last - SKIP - 1
        return {"wall_s": (wall_end - wall) / count, "cpu_s": (cpu_end - cpu) / count}


def bare_round(
    kind: str, section: Any, images: Tensor, *, steps: int, batch: int
) -> dict[str, float]:
    """Run the plain loop; return seconds per step."""
    objective: Any = kinds.build(kind, section, Facts(SIDE, 0, batch, 0, images.device))
    averages = {name: deepcopy(objective.networks[name]) for name in objective.averaged}
    learned = {
        player: [p for group in optimizer.param_groups for p in group["params"]]
        for player, optimizer in objective.optimizers.items()
    }
    everyone = [p for network in objective.networks.values() for p in network.parameters()]

    def turn(player: str, loss: Callable[[], Tensor]) -> None:
        for parameter in everyone:
            parameter.requires_grad_(False)
        for parameter in learned[player]:
            parameter.requires_grad_(True)
        objective.optimizers[player].zero_grad()
        loss().backward()
        objective.optimizers[player].step()

    clock = Clock(images.device.type, steps)
    for step in range(1, steps + 1):
        clock.begins(step)
        x = images[torch.randint(len(images), (batch,), device=images.device)]
        judging, make = LOOPS[kind](
            objective, x.contiguous(memory_format=torch.channels_last), step
        )
        for loss in judging:
            turn("discriminator", loss)
        turn("generator", make)
        for name, average in averages.items():
            own = objective.networks[name].state_dict().values()
            pairs = [
                (a, v)
                for a, v in zip(average.state_dict().values(), own, strict=True)
                if a.is_floating_point()
            ]
            torch._foreach_lerp_([a for a, _ in pairs], [v for _, v in pairs], 0.001)  # pyright: ignore
    return clock.per_step()


def trainer_round(
    kind: str, section: Any, folder: Path, *, steps: int, batch: int, threads: int, device: Any
) -> dict[str, float]:
    """Train as a user does; return seconds per step."""
    shutil.rmtree(folder, ignore_errors=True)
    config = PretrainConfig(
        kind=kind,  # type: ignore[arg-type]
        out=str(folder), source=SourceConfig(kind="digits"), image=ImageConfig(size=SIDE),
        steps=steps, batch_size=batch, checkpoint_every=10 * steps, num_samples=4, device=device,
        precision="float32", threads=threads, **{kind: section},
    )  # fmt: skip
    clock, original = Clock(device, steps), Players.step

    def noted(self: Players, number: int, *told: Any, **named: Any) -> Any:
        clock.begins(number)
        return original(self, number, *told, **named)

    Players.step = noted
    try:
        pretrain.pretrain(config)
    finally:
        Players.step = original
    return clock.per_step()


def measure(kind: str, options: argparse.Namespace, images: Tensor, folder: Path) -> dict[str, Any]:
    """Alternate both; return seconds of a step of either and their ratio."""
    rounds, size = [], {"steps": options.steps, "batch": options.batch}
    section = (AT_RECIPES_WIDTH if images.is_cuda else SECTIONS)[kind]
    told = {"threads": options.threads, "device": images.device.type}
    for number in range(options.rounds):
        bare = bare_round(kind, section, images, **size)
        ours = trainer_round(kind, section, folder, **told, **size)
        found = {f"bare_{name}": round(value, 5) for name, value in bare.items()}
        found |= {f"trainer_{name}": round(value, 5) for name, value in ours.items()}
        rounds.append(found)
        print(f"{kind} round {number + 1}: {found}", flush=True)
    ratios = {}
    for name in ("wall", "cpu"):
        each = [found[f"trainer_{name}_s"] / found[f"bare_{name}_s"] for found in rounds]
        ratios[f"ratio_{name}_median"] = round(statistics.median(each), 4)
    return {**ratios, "rounds": rounds}


def _processor(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.machine()


def main() -> None:
    """Run the comparison and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=LOOPS, default=list(LOOPS))
    for name, value in (("rounds", 5), ("steps", 60), ("batch", 32), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value, help="(count)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    options = parser.parse_args()
    if options.steps % 10 or options.steps <= SKIP:
        parser.error(f"--steps: a multiple of 10 above {SKIP}")
    logging.disable(logging.INFO)
    torch.set_num_threads(options.threads)
    images = torch.rand(1024, 3, SIDE, SIDE, device=options.device) * 2 - 1
    torch.backends.cudnn.benchmark = True  # as the trainer has it
    with tempfile.TemporaryDirectory() as folder:
        found = {
            kind: measure(kind, options, images, Path(folder) / kind) for kind in options.kinds
        }
    result = {
        "what": "seconds per step of a generator, trainer / bare loop, interleaved",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{_processor(options.device)}, {options.threads} thread(s)",
        "torch": torch.__version__,
        "command": " ".join(["python", "benchmarks/gans_step.py", *sys.argv[1:]]),
        **found,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
