"""Compare a teacher with hooks on plain networks: same images, levels and dtype.

    python benchmarks/teacher.py                                    # ADM-256's shape, narrowed, CPU
    python benchmarks/teacher.py --device cuda --width 256 --batch 64 --dtypes bfloat16 --compile
    python benchmarks/teacher.py --case stylegan2 --batch 8         # images and features drawn, CPU
    python benchmarks/teacher.py --case latents --width 160 --size 256   # kept latents and images
    python benchmarks/teacher.py --device cuda --case sd --batch 16 --dtypes bfloat16 --compile

Weights are random. `plain` is what a user would write: the whole forward pass with forward hooks on
the blocks, the features converted to float16 and copied to the host. In case `latents` both are
ours, from `images` or from their kept latents (images are not decoded in either). Rounds are
interleaved, the first one warms up. Prints one JSON object, also written to `--out`: seconds per
image (best round), ratios plain / dreamshard (median of the paired rounds), float32 / other dtypes,
images/s, feature bytes handed to the host (stylegan2), and achieved TFLOP/s, as a share of
`--peak_tflops` where that is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import teacher_stylegan2
from dreamshard.rng import normal
from pipeline.teachers.door import open_teacher
from pipeline.teachers.inspecting.tap_table import tap_table

CASES = {
    "adm": {"up.0": (0, 32), "up.1": (1, 16), "up.2": (2, 8), "up.3": (3, 4)},
    "sd": {"up.0": (0, 64), "up.1": (1, 32), "up.2": (2, 16), "up.3": (3, 8)},
}
"""Taps of each case: number of the decoder's block, stride."""
COARSE = {"adm": ["up.0", "up.1"], "sd": ["up.0", "up.1", "up.2"]}
"""The taps of strides 16 and above."""
TIMESTEP = 150
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def save_adm(folder: Path, width: int, size: int) -> None:
    """Save a UNet of ADM-256's shape with its base width changed."""
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


def save_sd(folder: Path, width: int, size: int, *, vae: int = 128) -> None:
    """Save a UNet, VAE and empty prompt of Stable Diffusion 1.5's shape; 320 is its own width.

    Args:
        vae: width of the autoencoder; 128 is its own.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file

    UNet2DConditionModel(
        sample_size=size // 8,
        cross_attention_dim=768,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(vae, 2 * vae, 4 * vae, 4 * vae),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).save_pretrained(folder / "vae")
    PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    save_file({"prompt_embeds": torch.randn(1, 77, 768)}, folder / "empty_prompt.safetensors")


def save_narrow_sd(folder: Path, width: int, size: int) -> None:
    """Save Stable Diffusion 1.5's shape with both of its networks narrowed alike."""
    save_sd(folder, width, size, vae=128 * width // 320)


def latents_calls(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], object]]:
    """Make the variants of case `latents`: from images, and from what is kept of them."""
    shape = (options.batch, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    indices = np.arange(options.batch)
    calls: dict[str, Callable[[], object]] = {}
    for dtype in options.dtypes:
        for label, taps in (("all", list(CASES["sd"])), ("16+", COARSE["sd"])):
            ours: Any = open_teacher(
                folder, levels=[*taps, "latent"], timesteps=[TIMESTEP], compute_dtype=dtype,
                device=options.device, threads=options.threads, micro_batch=options.batch,
            )  # fmt: skip
            found = ours.encode(images, indices).levels
            again = ours.encode_latents(found["latent"], indices).levels
            for name, values in found.items():
                np.testing.assert_allclose(again[name], values, rtol=0.02, atol=0.02)
            kept = found["latent"]
            calls[f"{dtype}/{label}/images"] = lambda ours=ours: ours.encode(images, indices)
            calls[f"{dtype}/{label}/latents"] = lambda ours=ours, kept=kept: ours.encode_latents(
                kept, indices
            )
    return calls


def plain_diffusers(
    folder: Path, case: str, taps: Sequence[str], device: str, dtype: torch.dtype
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return what a user would write: the whole forward pass with hooks."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel, UNet2DModel

    vae: Any = None
    if case == "sd":
        from safetensors.torch import load_file

        module: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype).to(device).eval()
        prompt = load_file(folder / "empty_prompt.safetensors")["prompt_embeds"].to(device, dtype)
    else:
        module = UNet2DModel.from_pretrained(folder, torch_dtype=dtype)
    module = module.to(device).eval()
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    found: dict[str, torch.Tensor] = {}
    for name in taps:
        block = module.up_blocks[CASES[case][name][0]]
        last = (getattr(block, "attentions", None) or block.resnets)[-1]

        def hook(_m: Any, _i: Any, out: Any, name: str = name) -> None:
            found[name] = out[0] if isinstance(out, tuple) else out

        last.register_forward_hook(hook)

    @torch.no_grad()
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        x0 = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        given = {}
        if vae is not None:
            x0 = vae.encode(x0.to(dtype)).latent_dist.mode().float() * vae.config.scaling_factor
            given = {"encoder_hidden_states": prompt.expand(len(x0), -1, -1)}
        noise = normal(0, range(len(images)), 0, "noise", tuple(x0.shape[1:]))
        times = torch.full((len(images),), TIMESTEP, device=device)
        x_t = scheduler.add_noise(x0, torch.from_numpy(noise).to(device), times)
        module(x_t.to(dtype), times, **given)
        return {name: value.half().cpu().numpy() for name, value in found.items()}

    return run


def seconds(call: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    """Time one call."""
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def build_calls(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], object]]:
    """Make every variant to be timed: `dtype/levels/who`."""
    shape = (options.batch, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    indices = np.arange(options.batch)
    calls: dict[str, Callable[[], object]] = {}
    for dtype in options.dtypes:
        for label, taps in (("all", list(CASES[options.case])), ("16+", COARSE[options.case])):
            theirs = plain_diffusers(
                folder, options.case, taps, options.device, getattr(torch, dtype)
            )
            calls[f"{dtype}/{label}/plain"] = lambda theirs=theirs: theirs(images)
            variants: dict[str, dict[str, Any]] = {"dreamshard": {}}
            if options.compile:
                variants["compiled"] = {"compile": True}
            if options.contiguous:
                variants["contiguous"] = {"memory_format": "contiguous"}
            for name, settings in variants.items():
                ours = open_teacher(
                    folder, levels=taps, timesteps=[TIMESTEP], compute_dtype=dtype,
                    device=options.device, threads=options.threads, **settings,
                )  # fmt: skip
                calls[f"{dtype}/{label}/{name}"] = lambda ours=ours: ours.encode(images, indices)
    return calls


def summarise(
    times: dict[str, list[float]], gflops: dict[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Turn times per variant and round into seconds per image and ratios."""

    def ratio(first: str, second: str) -> float:
        pairs = zip(times[first], times[second], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 2)

    best = {name: min(values) / options.batch for name, values in times.items()}
    over: dict[str, float] = {}
    for name in times:
        dtype, label, who = name.split("/")
        for base in ("plain", "images"):
            if who != base and f"{dtype}/{label}/{base}" in times:
                over[f"{name} over {base}"] = ratio(f"{dtype}/{label}/{base}", name)
        if who == "compiled":
            over[f"{name} over not compiled"] = ratio(f"{dtype}/{label}/dreamshard", name)
        if dtype != "float32" and f"float32/{label}/{who}" in times:
            over[f"{name} over float32"] = ratio(f"float32/{label}/{who}", name)
    achieved = {
        name: gflops[name.split("/")[1]] / value / 1e3
        for name, value in best.items()
        if not name.endswith(("plain", "latents"))
    }
    found: dict[str, Any] = {
        "seconds_per_image": {name: round(value, 5) for name, value in best.items()},
        "images_per_second": {name: round(1 / value, 2) for name, value in best.items()},
        "speedup": over,
        "gflop_per_image": {name: round(value, 2) for name, value in gflops.items()},
        "tflop_per_second": {name: round(value, 3) for name, value in achieved.items()},
    }
    if options.peak_tflops:
        share = {name: round(value / options.peak_tflops, 4) for name, value in achieved.items()}
        found["share_of_peak"] = share
    return found


def prepare(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Save the case's network; return the variants, and the operations per image by levels."""
    if options.case == "stylegan2":
        made = teacher_stylegan2.save(folder, options.width, options.size)
        calls = teacher_stylegan2.build_calls(options, folder, made)
    else:
        saves = {"adm": save_adm, "sd": save_sd, "latents": save_narrow_sd}
        saves[options.case](folder, options.width, options.size)
        build = latents_calls if options.case == "latents" else build_calls
        calls = build(options, folder)
    rows = {row.name: row.gflops or 0.0 for row in tap_table(str(folder), costs=True)[1]}
    if options.case == "stylegan2":
        return calls, {"all": rows[f"b{options.size}"]}
    coarse = COARSE["adm" if options.case == "adm" else "sd"]
    return calls, {"all": rows["up.3"], "16+": rows[coarse[-1]]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=[*CASES, "latents", "stylegan2"], default="adm")
    parser.add_argument("--width", type=int, help="default 32 (adm), 320 (sd), 128 (stylegan2)")
    parser.add_argument("--size", type=int, help="default 256, 512 (sd), 64 (stylegan2), pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--compile", action="store_true", help="also time compile: true")
    parser.add_argument("--contiguous", action="store_true", help="also without channels_last")
    parser.add_argument("--peak_tflops", type=float, help="of the device, for the share of peak")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="process: CPU seconds, for a busy machine; use with --threads 1",
    )
    parser.add_argument("--out", help="file for the JSON")
    options = parser.parse_args()
    options.width = options.width or {"adm": 32, "stylegan2": 128}.get(options.case, 320)
    options.size = options.size or {"adm": 256, "stylegan2": 64}.get(options.case, 512)
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "command": "python benchmarks/teacher.py " + " ".join(sys.argv[1:]),
        "settings": vars(options),
        "machine": {"cpu": cpu_name(), "torch": torch.__version__},
    }
    if options.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({**result, "skipped": "no CUDA device"}))
        return
    if options.device == "cuda":
        result["machine"]["gpu"] = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls, gflops = prepare(options, folder)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(options.rounds + 1):
            for name, call in calls.items():
                taken = seconds(call, options.device, CLOCKS[options.clock])
                if number:  # the first round warms up
                    times[name].append(taken)
    result |= summarise(times, gflops, options)
    if options.case == "stylegan2":
        result["feature_bytes_from_device_per_image"] = {
            name: teacher_stylegan2.bytes_leaving(call) // options.batch
            for name, call in calls.items()
            if not name.endswith("plain")
        }
    text = json.dumps(result, indent=2)
    if options.out:
        Path(options.out).write_text(text + "\n")
    print(text)


def cpu_name() -> str:
    """Return the processor's model and the number formats it computes in."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    flags = next((x for x in lines if x.startswith("flags")), "")
    has = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f"{model} ({', '.join(has)})"


if __name__ == "__main__":
    main()
