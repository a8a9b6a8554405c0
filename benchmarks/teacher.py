"""Compare a teacher with hooks on a plain diffusers network: same images, levels, dtype.

    python benchmarks/teacher.py --width 64 --rounds 5

Rounds are interleaved. Prints one JSON object: seconds per image (best round) and ratios (median
of the paired rounds).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from dreamshard.rng import normal
from pipeline.teachers.door import open_teacher

BLOCKS = {"up.0": (0, 32), "up.1": (1, 16), "up.2": (2, 8), "up.3": (3, 4)}
TIMESTEP = 150


def save_network(folder: Path, width: int, size: int) -> None:
    """Save a UNet of ADM-256's shape, narrowed to `width`, with random weights."""
    from diffusers import DDPMScheduler, UNet2DModel

    plain, attention = "ResnetDownsampleBlock2D", "AttnDownBlock2D"
    UNet2DModel(
        sample_size=size,
        out_channels=6,
        layers_per_block=2,
        block_out_channels=tuple(width * m for m in (1, 1, 2, 2, 4, 4)),
        down_block_types=(plain,) * 3 + (attention,) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=min(64, width),
        attn_norm_num_groups=32,
    ).save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder / "scheduler")


def plain_diffusers(
    folder: Path, taps: list[str], device: str, dtype: torch.dtype
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return what a user would write: the whole forward pass with hooks."""
    from diffusers import DDPMScheduler, UNet2DModel

    module = UNet2DModel.from_pretrained(folder, torch_dtype=dtype).to(device).eval()
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    found: dict[str, torch.Tensor] = {}
    for name in taps:
        block = module.up_blocks[BLOCKS[name][0]]
        last = (getattr(block, "attentions", None) or block.resnets)[-1]
        last.register_forward_hook(lambda _m, _i, out, name=name: found.__setitem__(name, out))

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        x0 = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        noise = normal(0, range(len(images)), 0, "noise", tuple(x0.shape[1:]))
        times = torch.full((len(images),), TIMESTEP, device=device)
        x_t = scheduler.add_noise(x0, torch.from_numpy(noise).to(device), times)
        module(x_t.to(dtype), times)
        return {name: value.half().cpu().numpy() for name, value in found.items()}

    return run


def seconds(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = np.random.default_rng(0).integers(
        0, 256, (options.batch, options.size, options.size, 3), dtype=np.uint8
    )
    indices = np.arange(options.batch)
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_network(Path(folder), options.width, options.size)
        for dtype in options.dtypes:
            for label, taps in (("s4-s32", list(BLOCKS)), ("s16-s32", ["up.0", "up.1"])):
                theirs = plain_diffusers(Path(folder), taps, options.device, getattr(torch, dtype))
                ours = open_teacher(
                    folder, levels=taps, timesteps=[TIMESTEP], compute_dtype=dtype,
                    device=options.device, threads=options.threads,
                )  # fmt: skip
                calls[f"{dtype}/{label}/diffusers"] = lambda theirs=theirs: theirs(images)
                calls[f"{dtype}/{label}/dreamshard"] = lambda ours=ours: ours.encode(
                    images, indices
                )
        times: dict[str, list[float]] = {name: [] for name in calls}
        for round_number in range(options.rounds + 1):
            for name, call in calls.items():
                taken = seconds(call, options.device)
                if round_number:  # the first round warms up
                    times[name].append(taken)
    result: dict[str, object] = {"settings": vars(options)}
    result["seconds_per_image"] = {n: round(min(t) / options.batch, 4) for n, t in times.items()}
    result["ratio"] = {
        name.removesuffix("/diffusers"): round(
            statistics.median(
                a / b
                for a, b in zip(
                    times[name], times[name.replace("diffusers", "dreamshard")], strict=True
                )
            ),
            2,
        )
        for name in times
        if name.endswith("/diffusers")
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
