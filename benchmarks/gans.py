"""Check what SS-GAN's and BigBiGAN's papers say, on CIFAR-10 with narrow networks and paired seeds.

    python benchmarks/gans.py forgetting --train cifar10-train.parquet --val cifar10-val.parquet
    python benchmarks/gans.py bigbigan ... --arms base --seeds 0 --device cuda
    python benchmarks/gans.py stability ... --extractor resnet56:resnet56-cifar10.safetensors
    python benchmarks/gans.py all ... --deadline 1800000000    # beside others, in one --work

forgetting: one-against-all tasks in sequence, twice, with and without rotations (SS-GAN, figure 3);
accuracy is of as many images of the class as of others. stability: SS-GAN against the unconditional
GAN at betas (0, .9) with one step of D: proxy Fréchet distance, and a probe of every block of D by
two poolings, the map's mean and the means of 4 x 4 cells, at three marks. bigbigan: the scores' and
the posterior's variants: relative L1 of G(E(x)) at the mean of E(x), k-NN with L1- and
L2-normalised features (majority, k 25), a linear probe of the average-pooled features, at two.

Every arm and seed (a unit) is kept in --work: several processes share the units of a folder, and
what was stopped goes on when this is run again. A part prints one JSON object, which --out also
writes, with a table beside it; at every mark the seeds are compared of which all arms reached it.
Intervals are 95 % of Student's t over the seeds, of differences over the seeds' differences.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gans_loop import (
    EVERY,
    Images,
    Keeper,
    Objective,
    StoppedError,
    cached_images,
    train,
)
from benchmarks.gans_report import compared, table
from distill.probes.knn import knn_classes
from distill.probes.logistic import probe_classes
from distill.probes.scaling import standardise
from dreamshard.pictures import image_grid
from dreamshard.rng import generator
from pipeline.images import quality
from pipeline.learning.device import sent
from pipeline.learning.pretraining.adversarial import losses
from pipeline.learning.pretraining.adversarial.bigbigan.config import BigBiGANConfig, EncoderConfig
from pipeline.learning.pretraining.adversarial.bigbigan.measure import relative_l1
from pipeline.learning.pretraining.adversarial.bigbigan.objective import BigBiGANObjective
from pipeline.learning.pretraining.adversarial.norms import initialise, normalise_weights
from pipeline.learning.pretraining.adversarial.objective import Facts
from pipeline.learning.pretraining.adversarial.ssgan.config import SSGANConfig
from pipeline.learning.pretraining.adversarial.ssgan.networks import discriminator_layout
from pipeline.learning.pretraining.adversarial.ssgan.objective import SSGANObjective
from pipeline.teachers.gan.ssgan.network import SSGANDiscriminator
from pipeline.teachers.pixels import signed, to_uint8

CLASSES = 10
DRAWN = 1000
"""Samples that a distance is of (count)."""


@dataclass(frozen=True)
class Setting:
    """What every unit is trained with.

    Args:
        options: of the command line.
        sets: "train" and "val".
        images: uint8 (N, 32, 32, 3) of the training images, on the device.
    """

    options: argparse.Namespace
    sets: Mapping[str, Images]
    images: Tensor

    @property
    def device(self) -> torch.device:
        """Return where networks are."""
        return self.images.device

    @property
    def half(self) -> bool:
        """Return whether convolutions are in bfloat16."""
        return self.options.precision == "bfloat16"


def forget(setting: Setting, arm: str, seed: int, keeper: Keeper) -> None:
    """Train a discriminator on one class against all others, class after class, twice."""
    options, device = setting.options, setting.device
    config = SSGANConfig(discriminator_channels=options.width)
    network = SSGANDiscriminator(discriminator_layout(config, 32))
    normalise_weights(initialise(network, "normal", seed=seed))
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    fused = device.type == "cuda" or None
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.0, 0.9), fused=fused)
    curve: list[float] = []
    at = 0
    if state := keeper.load(device):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        at, curve = state["at"], state["curve"]
    rows = _by_class(setting.sets["train"][1])
    val = torch.from_numpy(setting.sets["val"][0]).to(device)
    for step in range(at, 2 * CLASSES * options.task_steps):
        task = step // options.task_steps % CLASSES
        x, y = _of_task(setting.images, rows, task, options.batch, seed, step)
        images, labels = losses.rotate(x) if arm == "rotation" else (x, None)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=setting.half):
            pooled = network.pooled(images)
            logits = network.logit(pooled[: len(x)])[:, 0]
            loss = F.binary_cross_entropy_with_logits(logits.float(), y)
            if labels is not None:
                loss = loss + losses.rotation_loss(network.rotation(pooled), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % EVERY == 0:
            curve.append(_accuracy(network, val, setting.sets["val"][1], task))
            told = {"at": step + 1, "curve": curve}
            keeper.save(
                lambda told=told: {
                    **told, "network": network.state_dict(), "optimizer": optimizer.state_dict()
                }
            )  # fmt: skip
    half = len(curve) // 2
    first, second = float(np.mean(curve[:half])), float(np.mean(curve[half:]))
    marks = {"end": {"first": first, "second": second, "gain": second - first}}
    keeper.note({"marks": marks, "curve": [round(value, 4) for value in curve]})


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(labels == each) for each in range(CLASSES)]


def _of_task(
    images: Tensor, rows: Sequence[np.ndarray], task: int, count: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Draw as many images of a class as of the others, mixed; the same for every arm."""
    drawn = generator(seed, step, 0, "gans-task")
    others = np.concatenate([each for number, each in enumerate(rows) if number != task])
    half = count // 2
    chosen = np.concatenate([drawn.choice(rows[task], half), drawn.choice(others, count - half)])
    order = drawn.permutation(count)
    y = np.repeat(np.array([1, 0], np.float32), [half, count - half])[order]
    x = signed(images[sent(chosen[order], images.device)])
    return x.contiguous(memory_format=torch.channels_last), sent(y, images.device)


@torch.no_grad()
def _accuracy(network: SSGANDiscriminator, val: Tensor, labels: np.ndarray, task: int) -> float:
    x, y = _of_task(val, _by_class(labels), task, 512, 0, task)
    guess = network.eval()(x)[:, 0] > 0
    network.train()
    return float((guess == (y > 0)).float().mean())


BIGBIGAN: dict[str, dict[str, Any]] = {
    "base": {},
    "no unaries": {"scores": ["xz"]},
    "deterministic": {"posterior": "deterministic"},
}


def encode(setting: Setting, arm: str, seed: int, keeper: Keeper) -> None:
    """Train a BigBiGAN; measure its encoder at the middle and at the end."""
    options, width = setting.options, setting.options.width
    config = BigBiGANConfig(
        channels=width // 2, discriminator_channels=width // 2, latent=64, shared=16, width=128,
        attention=0, lr=2e-4, discriminator_lr=2e-4, ema=0.999,
        encoder=EncoderConfig(filters=width // 2, units=[1, 1, 1], stem=3, perceptron=[128]),
        **BIGBIGAN[arm],
    )  # fmt: skip
    objective = BigBiGANObjective(
        config, Facts(32, 0, options.batch, seed, setting.device, setting.half)
    )
    steps = options.encode_steps
    due = (0, steps // 2, steps)
    for step, averages, mark in to_mark(objective, setting, seed, keeper, steps=steps, due=due):
        mark["relative_l1"] = _error(objective, averages, setting.sets["val"])
        if step:
            mark |= _judged(averages["encoder"], setting)
            _sheet(objective, averages, setting.sets["val"][0], keeper.picture)


def to_mark(
    objective: Objective,
    setting: Setting,
    seed: int,
    keeper: Keeper,
    *,
    steps: int,
    due: Sequence[int],
) -> Iterator[tuple[int, dict[str, nn.Module], dict[str, float]]]:
    """Train, and stop at the steps that are due and not marked yet; keep what is put into a mark.

    Yields:
        the step, averages of the networks, the mark to fill.
    """
    marks = keeper.found().get("marks", {})
    for step, averages in train(
        objective, setting.images, steps,
        batch=setting.options.batch, seed=seed, keeper=keeper, half=setting.half,
    ):  # fmt: skip
        if str(step) not in marks and step in due:
            yield step, averages, marks.setdefault(str(step), {})
            keeper.note({"marks": marks})


def _judged(encoder: nn.Module, setting: Setting) -> dict[str, float]:
    features = {
        name: _pooled(encoder, images, setting.device) for name, (images, _) in setting.sets.items()
    }
    labels, truth = setting.sets["train"][1], setting.sets["val"][1]
    found: dict[str, float] = {}
    for name, metric in (("knn_d1", "l1"), ("knn_d2", "cosine")):
        guess = knn_classes(
            features["train"], labels, features["val"], ks=[25], temperature=0.0,
            metric=metric, device=setting.device.type,  # type: ignore[arg-type]
        )  # fmt: skip
        found[name] = float((guess[:, 0] == truth).mean())
    found["knn_d1 - knn_d2"] = found["knn_d1"] - found["knn_d2"]
    found["probe"] = _probe(features["train"], labels, features["val"], truth)
    encoder.train()
    return found


def _rebuilt(objective: BigBiGANObjective, averages: Any, images: np.ndarray) -> Tensor:
    device = objective.facts.device
    parts = torch.from_numpy(images).split(200)
    whole = [objective.reconstruct(averages, signed(part.to(device))) for part in parts]
    for network in averages.values():
        network.train()
    return torch.cat(whole).cpu()


def _error(objective: BigBiGANObjective, averages: Any, val: Images) -> float:
    """Return the relative L1 error, networks back in training afterwards."""
    return relative_l1(signed(torch.from_numpy(val[0])), _rebuilt(objective, averages, val[0]))


def _sheet(objective: BigBiGANObjective, averages: Any, images: np.ndarray, file: Path) -> None:
    """Write images and, right of each, what comes back of them."""
    rebuilt = to_uint8(_rebuilt(objective, averages, images[:32])).numpy()
    pairs = np.stack([images[:32], rebuilt], axis=1).reshape(-1, *images.shape[1:])
    file.write_bytes(image_grid(pairs, columns=8, cell_px=64, gap_px=1))


@torch.inference_mode()
def _pooled(encoder: nn.Module, images: np.ndarray, device: torch.device) -> np.ndarray:
    found: list[Tensor] = []
    hook = encoder.pool.register_forward_hook(lambda *told: found.append(told[2]))  # type: ignore[union-attr]
    encoder.eval()
    for part in torch.from_numpy(images).split(500):
        encoder(signed(part.to(device)))
    hook.remove()
    return torch.cat(found).float().cpu().numpy()


def generate(setting: Setting, arm: str, seed: int, keeper: Keeper) -> None:
    """Train a GAN with one step of D; measure samples and D at a quarter, the half and the end."""
    options = setting.options
    extract = quality.open_extractor(options.extractor)
    reference = extract(setting.sets["val"][0])
    config = SSGANConfig(
        method=arm,  # type: ignore[arg-type]
        channels=options.width, discriminator_channels=options.width, betas=[0.0, 0.9],
        discriminator_steps=1,
    )  # fmt: skip
    objective = SSGANObjective(
        config, Facts(32, 0, options.batch, seed, setting.device, setting.half)
    )
    steps = options.steps
    due = (steps // 4, steps // 2, steps)
    for _, averages, mark in to_mark(objective, setting, seed, keeper, steps=steps, due=due):
        drawn = np.concatenate(
            [objective.sample(averages, range(at, at + 100)) for at in range(0, DRAWN, 100)]
        )
        averages["generator"].train()
        distance = quality.frechet_distance(reference, extract(drawn))
        mark |= {"distance": distance, **_blocks(objective, setting)}
        keeper.picture.write_bytes(image_grid(drawn[:64], columns=8, cell_px=64, gap_px=1))


@torch.inference_mode()
def _blocks(objective: SSGANObjective, setting: Setting) -> dict[str, float]:
    """Probe every block of D by both poolings."""
    network = objective.networks["discriminator"].eval()
    maps: dict[str, dict[str, list[Tensor]]] = {}

    def keep(told: Tensor, name: str, which: str) -> None:
        for kind, cells in (("mean", 1), ("cells", 4)):
            small = F.adaptive_avg_pool2d(told, cells).flatten(1).float().cpu()
            maps.setdefault(f"{name} {kind}", {}).setdefault(which, []).append(small)

    for which, (images, _) in setting.sets.items():
        hooks = [
            block.register_forward_hook(
                lambda *told, name=name, which=which: keep(told[2], name, which)
            )
            for name, block in network.blocks.items()  # type: ignore[union-attr,operator]
        ]
        for part in torch.from_numpy(images).split(500):
            network(signed(part.to(setting.device)))
        for hook in hooks:
            hook.remove()
    network.train()
    features = {name: {k: torch.cat(v).numpy() for k, v in of.items()} for name, of in maps.items()}
    labels, truth = setting.sets["train"][1], setting.sets["val"][1]
    return {name: _probe(of["train"], labels, of["val"], truth) for name, of in features.items()}


def _probe(train: np.ndarray, labels: np.ndarray, val: np.ndarray, truth: np.ndarray) -> float:
    scaled, queries = standardise(train, train, val)
    guess = probe_classes(scaled, labels, queries, strength=0.01)
    return float((guess == truth).mean())


Train = Callable[[Setting, str, int, Keeper], None]
PARTS: dict[str, tuple[Train, tuple[str, ...]]] = {
    "forgetting": (forget, ("rotation", "vanilla")),
    "bigbigan": (encode, tuple(BIGBIGAN)),
    "stability": (generate, ("ssgan", "unconditional")),
}
"""How a unit of each is trained, and its arms: the first one is compared with the others."""


def units(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """List part, arm and seed of what is asked for; whole seeds first."""
    parts = PARTS if options.part == "all" else [options.part]
    return [
        (part, arm, seed)
        for seed in options.seeds
        for part in parts
        for arm in PARTS[part][1]
        if not options.arms or arm in options.arms
    ]


def report(options: argparse.Namespace, part: str, chosen: Sequence[tuple[str, str, int]]) -> None:
    """Print, and write, what the units of a part have measured; say what is not done."""
    found = {
        (arm, seed): keeper_of(options, of, arm, seed).found()
        for of, arm, seed in chosen
        if of == part
    }
    left = [f"{arm} {seed}" for (arm, seed), unit in found.items() if not unit.get("done")]
    if left:
        print(f"{part}: not done: {', '.join(left)}", flush=True)
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for (arm, seed), unit in found.items():
        arms.setdefault(arm, {})[seed] = unit
    told: dict[str, Any] = {"part": part, "arms": arms, "compared": compared(arms)}
    if not told["compared"]:
        return
    told["settings"] = settings_of(options, part)
    told |= {"not_done": left} if left else {}
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(part, told))
    print(json.dumps(told))


def settings_of(options: argparse.Namespace, part: str) -> dict[str, Any]:
    """Return what decides a part's figures, besides arm and seed."""
    own = {
        "forgetting": ("task_steps",), "bigbigan": ("encode_steps",),
        "stability": ("steps", "extractor"),
    }  # fmt: skip
    names = (*("samples", "val_samples", "width", "batch", "device", "precision"), *own[part])
    return {name: getattr(options, name) for name in names}


def keeper_of(options: argparse.Namespace, part: str, arm: str, seed: int) -> Keeper:
    """Return the keeper of a unit."""
    name = f"{part}-{arm.replace(' ', '-')}-{seed}"
    return Keeper(options.work, name, options.deadline, settings_of(options, part))


def main() -> None:
    """Train the units that nobody has, and print what there is."""
    options = parsed()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = units(options)
    late = options.deadline is not None and time.time() > options.deadline
    if not late and any(not keeper_of(options, *unit).found().get("done") for unit in chosen):
        sets = {
            "train": cached_images(options.work, "train", options.train, options.samples),
            "val": cached_images(options.work, "val", options.val, options.val_samples),
        }
        images = torch.from_numpy(sets["train"][0]).to(options.device)
        setting = Setting(options, sets, images)
        try:
            for part, arm, seed in chosen:
                keeper = keeper_of(options, part, arm, seed)
                if keeper.make(partial(PARTS[part][0], setting, arm, seed, keeper)):
                    print(f"{part} {arm} {seed}: {keeper.found()['marks']}", flush=True)
        except StoppedError as stopped:
            print(f"stopped at the deadline in {stopped}; run again to go on", flush=True)
    for part in PARTS if options.part == "all" else [options.part]:
        report(options, part, chosen)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--train", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--extractor", default="pixels")
    parser.add_argument("--work", type=Path, default=Path("runs/gans"))
    parser.add_argument("--out", type=Path, help="file for one part's JSON")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--arms", nargs="+", default=[], help="(default: all of the part)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--deadline", type=float, help="stop then (seconds since the epoch)")
    for name, value in (
        ("samples", 10000), ("val_samples", 2000), ("width", 16), ("batch", 64),
        ("steps", 2000), ("encode_steps", 2000), ("task_steps", 200), ("threads", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=f"(count; {value})")
    options = parser.parse_args()
    if options.part == "all" and options.out:
        parser.error("--out: of one part")
    return options


if __name__ == "__main__":
    main()
