"""Part of benchmarks/gpu.py: encode img/s of large teachers against plain diffusers with hooks.

Networks of ADM-256's and Stable Diffusion 1.5's shapes with random weights, bfloat16. `plain` is
what a user would write: the whole forward pass with hooks, noise drawn on the device, features to
float16 and to the host. All variants stand ready before the clock starts; rounds are interleaved.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from benchmarks.teacher import CASES, COARSE, TIMESTEP, save_adm, save_sd
from pipeline.teachers.diffusion.teacher import DiffusionTeacher
from pipeline.teachers.door import open_teacher
from pipeline.teachers.recording import taps

SHAPES = {"adm": (256, 256, 32), "sd": (320, 512, 16)}
"""Base width, pixels, images per call."""
TINY = {"adm": (32, 64, 2), "sd": (32, 64, 2)}
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0}
"""Dense bfloat16, by the maker's data sheet (SXM)."""


def wait_for(go: Path | None) -> None:
    """Say that everything stands ready, by a file beside `go`; wait for `go`."""
    if go is None:
        return
    go.with_suffix(".ready").touch()
    while not go.exists():
        time.sleep(0.2)


def matmul_tflops(device: str) -> float:
    """Measure a large bfloat16 product: the rate that can be had at all."""
    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=number_format(device)) for _ in range(2))
    times = []
    for _ in range(12):
        times.append(seconds(lambda: a @ b, device))
    return 2 * side**3 / statistics.median(times[3:]) / 1e12


def seconds(call: Callable[[], object], device: str) -> float:
    """Time one call by the wall, the device idle before and after."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def number_format(device: str) -> torch.dtype:
    """Return bfloat16, which CPUs without its units only imitate."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def plain_diffusers(folder: Path, case: str, device: str) -> Callable[..., dict[str, np.ndarray]]:
    """Return what a user would write: (images, taps) -> maps, float16 on the host."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel, UNet2DModel

    dtype, vae, prompt = number_format(device), cast(Any, None), cast(Any, None)
    if case == "sd":
        from safetensors.torch import load_file

        module: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype)
        vae = cast(Any, vae).to(device).eval()
        prompt = load_file(folder / "empty_prompt.safetensors")["prompt_embeds"].to(device, dtype)
    else:
        module = UNet2DModel.from_pretrained(folder, torch_dtype=dtype)
    module = module.to(device).eval()
    scheduler = cast(Any, DDPMScheduler.from_pretrained(folder / "scheduler"))
    found: dict[str, torch.Tensor] = {}
    for name, (number, _) in CASES[case].items():
        block = module.up_blocks[number]
        last = (getattr(block, "attentions", None) or block.resnets)[-1]

        def hook(_m: Any, _i: Any, out: Any, name: str = name) -> None:
            found[name] = out[0] if isinstance(out, tuple) else out

        last.register_forward_hook(hook)

    @torch.no_grad()
    def run(images: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        x0 = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
        given = {}
        if vae is not None:
            x0 = vae.encode(x0).latent_dist.mode() * vae.config.scaling_factor
            given = {"encoder_hidden_states": prompt.expand(len(x0), -1, -1)}
        times = torch.full((len(images),), TIMESTEP, device=device)
        x_t = scheduler.add_noise(x0, torch.randn_like(x0), times)
        module(x_t.to(dtype), times, **given)
        return {name: found[name].half().cpu().numpy() for name in names}

    return run


class Case:
    """One network: every variant, ready to be timed.

    Args:
        name: adm or sd.
        device: cuda or cpu.
        tiny: a network of seconds.
        compiled: also our teacher with compiled blocks.
        folder: for its files.
    """

    def __init__(self, name: str, device: str, *, tiny: bool, compiled: bool, folder: Path) -> None:
        width, size, batch = (TINY if tiny else SHAPES)[name]
        self.name, self.device, self.batch = name, device, batch
        kept = torch.get_default_dtype()
        torch.set_default_dtype(number_format(device))
        try:
            with torch.device(device):  # drawn where that takes no time
                {"adm": save_adm, "sd": save_sd}[name](folder, width, size)
        finally:
            torch.set_default_dtype(kept)
        images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        rows, dtype = np.arange(batch), str(number_format(device)).removeprefix("torch.")
        plain = plain_diffusers(folder, name, device)
        self.calls: dict[str, Callable[[], object]] = {}
        self.gflops: dict[str, float] = {}
        for label, wanted in (("4 levels", list(CASES[name])), ("2 levels", COARSE[name][-2:])):
            self.calls[f"plain, {label}"] = lambda w=wanted: plain(images, w)
            for kind in ("eager", *["compiled"] * compiled):
                settings = {"compile": kind == "compiled"}
                teacher = cast(
                    DiffusionTeacher,
                    open_teacher(
                        folder, levels=wanted, timesteps=[TIMESTEP], compute_dtype=dtype,
                        device=device, threads=0, **settings,
                    ),
                )  # fmt: skip
                if not self.gflops:
                    self._count(teacher)
                self.calls[f"{kind}, {label}"] = lambda t=teacher: t.encode(images, rows)
        self.deepest = {"4 levels": list(CASES[name])[-1], "2 levels": COARSE[name][-1]}

    def warm_up(self) -> dict[str, Any]:
        """Call everything twice; return the seconds of the first calls, and what fails."""
        found, broken = {}, {}
        for name, call in self.calls.items():
            try:
                found[name] = seconds(call, self.device)
                call()
            except Exception as error:  # one variant that fails must not cost the others' figures
                broken[name] = f"{type(error).__name__}: {error}"[:500]
        for name in broken:
            del self.calls[name]
        return {"first_calls_s": found, "failed": broken}

    def measure(self, rounds: int, peak: float, ceiling: float) -> dict[str, Any]:
        """Time interleaved rounds; return medians, ratios and shares of the peak."""
        times: dict[str, list[float]] = {name: [] for name in self.calls}
        for _ in range(rounds):
            for name, call in self.calls.items():
                times[name].append(seconds(call, self.device))
        result: dict[str, Any] = {"batch": self.batch, "gflop_per_image": self.gflops}
        for name, values in times.items():
            kind, label = name.split(", ")
            middle = statistics.median(values)
            row: dict[str, Any] = {"img_per_s": self.batch / middle, "seconds": values}
            if kind != "plain":
                pairs = zip(times[f"plain, {label}"], values, strict=True)
                row["over_plain"] = statistics.median(a / b for a, b in pairs)
                spent = self.gflops[self.deepest[label]] + self.gflops.get("vae", 0.0)
                rate = spent * self.batch / middle / 1e3
                row |= {"tflop_per_s": rate, "share_of_matmul": rate / ceiling}
                if peak:
                    row["share_of_peak"] = rate / peak
            result[name] = row
        return result

    def _count(self, teacher: DiffusionTeacher) -> None:
        """Count operations per image up to each tap, and of the latent's encoder."""
        from torch.utils.flop_counter import FlopCounterMode

        height, width = teacher.image_size
        pixels = torch.zeros(1, 3, height, width, device=self.device)
        with torch.inference_mode():
            counter = FlopCounterMode(display=False)
            with counter:
                x0 = teacher.network.to_space(pixels)
            network, found = teacher.network, teacher.description.taps
            counts = taps.costs(
                lambda: teacher.denoise(x0, TIMESTEP), network.module, found  # type: ignore[arg-type]
            )  # fmt: skip
        self.gflops = {name: counts[name] / 1e9 for name in (*CASES[self.name], "output")}
        if counter.get_total_flops():
            self.gflops["vae"] = counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cases", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--go", type=Path, help="wait for this file before the clock starts")
    parser.add_argument("--out", type=Path, required=True, help="file for the JSON")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    card = torch.cuda.get_device_name() if on_gpu else ""
    peak = next((value for name, value in PEAK_TFLOPS.items() if name in card), 0.0)
    shm = Path("/dev/shm")
    result: dict[str, Any] = {"peak_tflops": peak}
    if not on_gpu:
        result["left_out"] = "compiled blocks and shares of a peak: measured on a GPU alone"
    with tempfile.TemporaryDirectory(dir=shm if on_gpu and shm.is_dir() else None) as name:
        cases = {}
        for case in options.cases:
            started = time.perf_counter()
            folder = Path(name) / case
            folder.mkdir()
            cases[case] = Case(
                case, options.device, tiny=options.tiny, compiled=on_gpu, folder=folder
            )
            result[case] = cases[case].warm_up()
            result[case]["ready_s"] = time.perf_counter() - started
            print(f"{case}: ready after {result[case]['ready_s']:.0f} s", flush=True)
        wait_for(options.go)
        result["matmul_tflops"] = matmul_tflops(options.device)
        for case, ready in cases.items():
            result[case] |= ready.measure(options.rounds, peak, result["matmul_tflops"])
            options.out.write_text(json.dumps(result, indent=2) + "\n")
            print(f"{case}: measured", flush=True)


if __name__ == "__main__":
    main()
