"""Check what SS-GAN's and BigBiGAN's papers say, on CIFAR-10 with narrow networks and paired seeds.

    python benchmarks/gans.py forgetting --train cifar10-train.parquet --val cifar10-val.parquet
    python benchmarks/gans.py bigbigan ...
    python benchmarks/gans.py stability --extractor pixels ...

forgetting: one-against-all tasks in sequence, twice, with and without rotations (SS-GAN, figure 3);
accuracy is of as many images of the class as of others. stability: SS-GAN against the unconditional
GAN at betas (0, .9) with one step of D: proxy Fréchet distance, and a probe of every block of D by
two poolings, the map's mean and the means of 4 x 4 cells. bigbigan: the scores' and the posterior's
variants: relative L1 of G(E(x)) at the mean of E(x), k-NN with L1- and L2-normalised features
(majority, k 25), a linear probe of the average-pooled features.

Every arm and seed is kept in --work and goes on from its last checkpoint when this is run again.
Prints a line per arm and seed and, last, one JSON object, which --out also writes, with a table
beside it. Intervals are 95 % of Student's t over the seeds' paired differences.
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
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.teacher_study import read_images
from distill.probes.knn import knn_classes
from distill.probes.logistic import probe_classes
from distill.probes.scaling import standardise
from dreamshard.pictures import image_grid
from dreamshard.rng import generator
from pipeline.images import quality
from pipeline.learning.pretraining.adversarial import losses
from pipeline.learning.pretraining.adversarial.bigbigan.config import BigBiGANConfig, EncoderConfig
from pipeline.learning.pretraining.adversarial.bigbigan.measure import relative_l1
from pipeline.learning.pretraining.adversarial.bigbigan.objective import BigBiGANObjective
from pipeline.learning.pretraining.adversarial.norms import initialise, normalise_weights
from pipeline.learning.pretraining.adversarial.objective import Facts, Share
from pipeline.learning.pretraining.adversarial.ssgan.config import SSGANConfig
from pipeline.learning.pretraining.adversarial.ssgan.networks import discriminator_layout
from pipeline.learning.pretraining.adversarial.ssgan.objective import SSGANObjective
from pipeline.teachers.gan.ssgan.network import SSGANDiscriminator
from pipeline.teachers.pixels import signed, to_uint8

CLASSES, CPU = 10, torch.device("cpu")
EVERY = 50
"""Steps between checkpoints, and between accuracies of the forgetting tasks (count)."""
Images = tuple[np.ndarray, np.ndarray]


class Keeper:
    """Keep one arm and seed: its state while it trains, its figures once it is done."""

    def __init__(self, work: Path, name: str) -> None:
        self.done, self.state = work / f"{name}.json", work / f"{name}.pt"

    def figures(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was measured before, or measure it."""
        if not self.done.exists():
            found = make()
            part = self.done.with_suffix(".partial")
            part.write_text(json.dumps(found) + "\n")
            part.replace(self.done)
            self.state.unlink(missing_ok=True)
        return json.loads(self.done.read_text())

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint."""
        return torch.load(self.state, weights_only=True) if self.state.exists() else None

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint in place of the last."""
        part = self.state.with_suffix(".partial")
        torch.save(dict(state), part)
        part.replace(self.state)


def forgetting(options: argparse.Namespace, sets: Mapping[str, Images]) -> dict[str, Any]:
    """Return, for each arm, the seeds' mean accuracy in either cycle and the second's gain."""
    found: dict[str, Any] = {}
    for arm in ("vanilla", "rotation"):
        for seed in range(options.seeds):
            keeper = Keeper(options.work, f"forgetting-{arm}-{seed}")
            result = keeper.figures(
                lambda arm=arm, seed=seed, keeper=keeper: _forget(options, sets, arm, seed, keeper)
            )
            print(f"forgetting {arm} {seed}: {result}", flush=True)
            found.setdefault(arm, []).append(result)
    gains = {arm: [each["second"] - each["first"] for each in runs] for arm, runs in found.items()}
    compared = {f"gain of {arm}": interval(values) for arm, values in gains.items()}
    return {"arms": found, "compared": {**compared, **paired("gain", gains, "rotation", "vanilla")}}


def _forget(
    options: argparse.Namespace, sets: Mapping[str, Images], arm: str, seed: int, keeper: Keeper
) -> dict[str, Any]:
    config = SSGANConfig(discriminator_channels=options.width)
    network = SSGANDiscriminator(discriminator_layout(config, 32))
    normalise_weights(initialise(network, "normal", seed=seed))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.0, 0.9))
    curve: list[float] = []
    at = 0
    if state := keeper.load():
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        at, curve = state["at"], state["curve"]
    total = 2 * CLASSES * options.task_steps
    train = _by_class(sets["train"][1])
    for step in range(at, total):
        task = step // options.task_steps % CLASSES
        x, y = _of_task(sets["train"][0], train, task, options.batch, seed, step)
        images, labels = losses.rotate(x) if arm == "rotation" else (x, None)
        pooled = network.pooled(images)
        logits = network.logit(pooled[: len(x)])[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, y)
        if labels is not None:
            loss = loss + losses.rotation_loss(network.rotation(pooled), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % EVERY == 0:
            curve.append(_accuracy(network, sets["val"], task))
            told = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            keeper.save({**told, "at": step + 1, "curve": curve})
    half = len(curve) // 2
    return {
        "first": float(np.mean(curve[:half])), "second": float(np.mean(curve[half:])),
        "curve": [round(value, 4) for value in curve],
    }  # fmt: skip


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(labels == each) for each in range(CLASSES)]


def _of_task(
    images: np.ndarray, rows: Sequence[np.ndarray], task: int, count: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Draw as many images of a class as of the others, mixed; the same for every arm."""
    drawn = generator(seed, step, 0, "gans-task")
    others = np.concatenate([each for number, each in enumerate(rows) if number != task])
    half = count // 2
    chosen = np.concatenate([drawn.choice(rows[task], half), drawn.choice(others, count - half)])
    order = drawn.permutation(count)
    y = torch.tensor([1.0] * half + [0.0] * (count - half))[torch.from_numpy(order)]
    return signed(torch.from_numpy(images[chosen[order]])), y


@torch.no_grad()
def _accuracy(network: SSGANDiscriminator, val: Images, task: int) -> float:
    rows = _by_class(val[1])
    x, y = _of_task(val[0], rows, task, 512, 0, task)
    guess = network.eval()(x)[:, 0] > 0
    network.train()
    return float((guess == (y > 0)).float().mean())


Objective = SSGANObjective | BigBiGANObjective


def train(
    objective: Objective, images: np.ndarray, steps: int, *, batch: int, seed: int, keeper: Keeper
) -> Iterator[tuple[int, dict[str, nn.Module]]]:
    """Train with a bare loop; yield steps done and averages, at the beginning and after each step.

    Args:
        images: uint8 (N, 32, 32, 3).
        keeper: of the checkpoints, one of which it goes on from.
    """
    averages = {name: deepcopy(objective.networks[name]) for name in objective.averaged}
    parts: dict[str, Any] = {
        **objective.networks, **{f"average {k}": v for k, v in averages.items()},
        **{f"optimizer {k}": v for k, v in objective.optimizers.items()},
    }  # fmt: skip
    at = 0
    if state := keeper.load():
        at = state.pop("at")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    yield at, averages
    for step in range(at + 1, steps + 1):
        turns = [("discriminator", turn) for turn in range(objective.discriminator_steps)]
        for who, turn in [*turns, ("generator", objective.discriminator_steps)]:
            share = _share(images, batch, seed=seed, step=step, turn=turn, progress=step / steps)
            _turn(objective, who, share)
        for name, average in averages.items():
            rate = 1 - objective.decay(step)
            own = objective.networks[name].state_dict()
            for key, value in average.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(own[key], rate)
        if step % EVERY == 0:
            kept = {name: part.state_dict() for name, part in parts.items()}
            keeper.save({**kept, "at": step})
        yield step, averages


def _turn(objective: Objective, who: str, share: Share) -> None:
    optimizer = objective.optimizers[who]
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for network in objective.networks.values():
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in learned)
    step = objective.discriminator_step if who == "discriminator" else objective.generator_step
    loss = step(share)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(f"step {share.step}: the {who}'s loss is {loss.item()}")


def _share(
    images: np.ndarray, batch: int, *, seed: int, step: int, turn: int, progress: float
) -> Share:
    drawn = generator(seed, step, turn, "gans-batch")
    x = signed(torch.from_numpy(images[drawn.integers(len(images), size=batch)]))
    flipped = torch.from_numpy(drawn.integers(2, size=batch)).bool()[:, None, None, None]
    x = torch.where(flipped, x.flip(3), x)
    positions = range(step * batch, (step + 1) * batch)
    return Share(x, None, positions, seed=seed, turn=turn, step=step, progress=progress)


BIGBIGAN: dict[str, dict[str, Any]] = {
    "base": {},
    "no unaries": {"scores": ["xz"]},
    "deterministic": {"posterior": "deterministic"},
}


def bigbigan(options: argparse.Namespace, sets: Mapping[str, Images]) -> dict[str, Any]:
    """Return, for each arm, the seeds' figures and their paired differences from the base."""
    found: dict[str, Any] = {}
    for seed in range(options.seeds):
        for arm, settings in BIGBIGAN.items():
            keeper = Keeper(options.work, f"bigbigan-{arm.replace(' ', '-')}-{seed}")
            result = keeper.figures(
                lambda settings=settings, seed=seed, keeper=keeper: _encode(
                    options, sets, settings, seed, keeper
                )
            )
            print(f"bigbigan {arm} {seed}: {result}", flush=True)
            found.setdefault(arm, []).append(result)
    compared = {}
    for figure in next(iter(found.values()))[0]:
        values = {arm: [run[figure] for run in runs] for arm, runs in found.items()}
        compared |= {f"{figure}, {arm}": interval(each) for arm, each in values.items()}
        for other in ("no unaries", "deterministic"):
            compared |= paired(figure, values, "base", other)
    nearest = {d: [run[f"knn_{d}"] for run in found["base"]] for d in ("d1", "d2")}
    return {"arms": found, "compared": {**compared, **paired("knn", nearest, "d1", "d2")}}


def _encode(
    options: argparse.Namespace,
    sets: Mapping[str, Images],
    settings: Mapping[str, Any],
    seed: int,
    keeper: Keeper,
) -> dict[str, Any]:
    width = options.width
    config = BigBiGANConfig(
        channels=width // 2, discriminator_channels=width // 2, latent=64, shared=16, width=128,
        attention=0, lr=2e-4, discriminator_lr=2e-4, ema=0.999,
        encoder=EncoderConfig(filters=width // 2, units=[1, 1, 1], stem=3, perceptron=[128]),
        **settings,
    )  # fmt: skip
    objective = BigBiGANObjective(config, Facts(32, 0, options.batch, seed, CPU))
    began = _error(objective, {n: objective.networks[n] for n in objective.averaged}, sets["val"])
    *_, (_, averages) = train(
        objective, sets["train"][0], options.steps, batch=options.batch, seed=seed, keeper=keeper
    )
    features = {name: _pooled(averages["encoder"], images) for name, (images, _) in sets.items()}
    train_labels, truth = sets["train"][1], sets["val"][1]
    found = {"relative_l1_at_first": began, "relative_l1": _error(objective, averages, sets["val"])}
    for name, metric in (("knn_d1", "l1"), ("knn_d2", "cosine")):
        guess = knn_classes(
            features["train"], train_labels, features["val"], ks=[25], temperature=0.0,
            metric=metric,  # type: ignore[arg-type]
        )  # fmt: skip
        found[name] = float((guess[:, 0] == truth).mean())
    found["probe"] = _probe(features["train"], train_labels, features["val"], truth)
    _sheet(objective, averages, sets["val"][0], keeper.done.with_suffix(".png"))
    return found


def _rebuilt(objective: BigBiGANObjective, averages: Any, images: np.ndarray) -> Tensor:
    parts = torch.from_numpy(images).split(200)
    return torch.cat([objective.reconstruct(averages, signed(part)) for part in parts])


def _error(objective: BigBiGANObjective, averages: Any, val: Images) -> float:
    """Return the relative L1 error, networks back in training afterwards."""
    error = relative_l1(signed(torch.from_numpy(val[0])), _rebuilt(objective, averages, val[0]))
    for network in averages.values():
        network.train()
    return error


def _sheet(objective: BigBiGANObjective, averages: Any, images: np.ndarray, file: Path) -> None:
    """Write images and, right of each, what comes back of them."""
    rebuilt = to_uint8(_rebuilt(objective, averages, images[:32])).numpy()
    pairs = np.stack([images[:32], rebuilt], axis=1).reshape(-1, *images.shape[1:])
    file.write_bytes(image_grid(pairs, columns=8, cell_px=64, gap_px=1))


@torch.inference_mode()
def _pooled(encoder: nn.Module, images: np.ndarray) -> np.ndarray:
    found: list[Tensor] = []
    hook = encoder.pool.register_forward_hook(lambda *told: found.append(told[2]))  # type: ignore[union-attr]
    encoder.eval()
    for part in torch.from_numpy(images).split(200):
        encoder(signed(part))
    hook.remove()
    return torch.cat(found).numpy()


def stability(options: argparse.Namespace, sets: Mapping[str, Images]) -> dict[str, Any]:
    """Return, for each arm, the seeds' distances and probes, and their paired differences."""
    extract = quality.open_extractor(options.extractor)
    reference, found = extract(sets["val"][0]), {}
    for seed in range(options.seeds):
        for arm in ("ssgan", "unconditional"):
            keeper = Keeper(options.work, f"stability-{arm}-{seed}")
            result = keeper.figures(
                lambda arm=arm, seed=seed, keeper=keeper: _generate(
                    options, sets, arm, seed, keeper, extract, reference
                )
            )
            print(f"stability {arm} {seed}: {result}", flush=True)
            found.setdefault(arm, []).append(result)
    compared = {}
    for figure in found["ssgan"][0]:
        values = {arm: [run[figure] for run in runs] for arm, runs in found.items()}
        compared |= {f"{figure}, {arm}": interval(each) for arm, each in values.items()}
        compared |= paired(figure, values, "ssgan", "unconditional")
    return {"arms": found, "compared": compared}


def _generate(
    options: argparse.Namespace,
    sets: Mapping[str, Images],
    arm: str,
    seed: int,
    keeper: Keeper,
    extract: quality.Extractor,
    reference: np.ndarray,
) -> dict[str, Any]:
    config = SSGANConfig(
        method=arm,  # type: ignore[arg-type]
        channels=options.width, discriminator_channels=options.width, betas=[0.0, 0.9],
        discriminator_steps=1,
    )  # fmt: skip
    objective = SSGANObjective(config, Facts(32, 0, options.batch, seed, CPU))
    curves = keeper.done.with_suffix(".curve.json")
    found: dict[str, float] = json.loads(curves.read_text()) if curves.exists() else {}
    for step, averages in train(
        objective, sets["train"][0], options.steps, batch=options.batch, seed=seed, keeper=keeper
    ):
        if step and step % (options.steps // 4) == 0 and f"distance at {step}" not in found:
            drawn = np.concatenate(
                [objective.sample(averages, range(at, at + 100)) for at in range(0, 1000, 100)]
            )
            averages["generator"].train()
            found[f"distance at {step}"] = quality.frechet_distance(reference, extract(drawn))
            found |= {f"{k} at {step}": v for k, v in _blocks(objective, sets).items()}
            curves.write_text(json.dumps(found))
            grid = image_grid(drawn[:64], columns=8, cell_px=64, gap_px=1)
            keeper.done.with_suffix(".png").write_bytes(grid)
    return found


@torch.inference_mode()
def _blocks(objective: SSGANObjective, sets: Mapping[str, Images]) -> dict[str, float]:
    """Probe every block of D by both poolings."""
    network = objective.networks["discriminator"].eval()
    maps: dict[str, dict[str, list[Tensor]]] = {}

    def keep(told: Tensor, name: str, which: str) -> None:
        for kind, cells in (("mean", 1), ("cells", 4)):
            small = F.adaptive_avg_pool2d(told, cells).flatten(1)
            maps.setdefault(f"{name} {kind}", {}).setdefault(which, []).append(small)

    for which, (images, _) in sets.items():
        hooks = [
            block.register_forward_hook(
                lambda *told, name=name, which=which: keep(told[2], name, which)
            )
            for name, block in network.blocks.items()  # type: ignore[union-attr,operator]
        ]
        for part in torch.from_numpy(images).split(200):
            network(signed(part))
        for hook in hooks:
            hook.remove()
    network.train()
    features = {name: {k: torch.cat(v).numpy() for k, v in of.items()} for name, of in maps.items()}
    labels, truth = sets["train"][1], sets["val"][1]
    return {name: _probe(of["train"], labels, of["val"], truth) for name, of in features.items()}


def _probe(train: np.ndarray, labels: np.ndarray, val: np.ndarray, truth: np.ndarray) -> float:
    scaled, queries = standardise(train, train, val)
    guess = probe_classes(scaled, labels, queries, strength=0.01)
    return float((guess == truth).mean())


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean and half width of the 95 % interval of Student's t."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    factor = float(stats.t.ppf(0.975, max(1, len(values) - 1)))
    return {"mean": float(np.mean(values)), "half": factor * spread / len(values) ** 0.5}


def paired(
    figure: str, values: Mapping[str, Sequence[float]], one: str, other: str
) -> dict[str, dict[str, float]]:
    """Return the interval of the difference of two arms, seed by seed."""
    apart = [a - b for a, b in zip(values[one], values[other], strict=True)]
    return {f"{figure}, {one} - {other}": interval(apart)}


def table(part: str, told: Mapping[str, Any]) -> str:
    """Return the comparisons as Markdown."""
    about = ", ".join(f"{key} {value}" for key, value in told["settings"].items())
    lines = [f"# {part} at CIFAR-10, narrow networks", "", about, "", "| figure | mean | ± 95 % |"]
    lines.append("|---|---|---|")
    for name, each in told["compared"].items():
        lines.append(f"| {name} | {each['mean']:.4g} | {each['half']:.2g} |")
    return "\n".join(lines) + "\n"


PARTS = {"forgetting": forgetting, "bigbigan": bigbigan, "stability": stability}


def main() -> None:
    """Run a part and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--train", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--extractor", default="pixels")
    parser.add_argument("--work", type=Path, default=Path("runs/gans"))
    parser.add_argument("--out", type=Path)
    for name, value in (
        ("samples", 10000), ("val_samples", 2000), ("seeds", 3), ("width", 16), ("batch", 64),
        ("steps", 2000), ("task_steps", 200), ("threads", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    sets = {
        "train": read_images(options.train, 32, options.samples, 0),
        "val": read_images(options.val, 32, options.val_samples, 0),
    }
    started = time.monotonic()
    told = PARTS[options.part](options, sets)
    names = ("samples", "val_samples", "seeds", "width", "batch", "steps", "task_steps")
    told["settings"] = {name: getattr(options, name) for name in names}
    told |= {"part": options.part, "seconds": round(time.monotonic() - started, 1)}
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(options.part, told))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
