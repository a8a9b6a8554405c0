"""Make the encoder's file of the TensorFlow Hub module's variables; TensorFlow is not needed here.

Where it is, save the variables in the order in which the graph was built, which this order is read
by, and if possible what the module makes of a few images:

    module = hub.Module("bigbigan-resnet50")                  # or revnet50x4, wherever it is kept
    x = numpy.load("images.npy")                              # float32 (N, 256, 256, 3) in [-1, 1]
    told = module(tf.constant(x), signature="encode", as_dict=True)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        names = [v.op.name for v in tf.global_variables()]
        numpy.savez("variables.npz", **dict(zip(names, session.run(tf.global_variables()))))
        numpy.savez("outputs.npz", x=x, **session.run(told))

    python -m pipeline.teachers.gan.bigbigan.convert variables.npz encoder.safetensors \\
        --bn_eps 1e-4 --last_relu true --check outputs.npz

No description of the module's variables is published. So names only choose what is of the encoder
(`--scope`) and tell a norm's four arrays apart; what a layer is for follows from its place among
the convolutions, norms or linear layers, and every shape has to fit. `--check` compares features
and latents with the module's own, and nothing is written where they differ: use it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamshard.errors import TeacherError, run_main
from dreamshard.foreign.arrays import read_npz
from pipeline.teachers import weights
from pipeline.teachers.gan.bigbigan.match import Arrays, Told, arrange, sort_layers

CLOSE = 1e-3
"""The most that a checked output may differ (absolute, features have a scale of about 1)."""
OUTPUTS = {
    "avepool_feat": "e.avepool",
    "bn_crelu_feat": "e.bn_crelu",
    "z_mean": "e.z_mean",
    "z_stdev": "e.z_stdev",
}
"""Output of the module's `encode` -> our tap."""


def check(file: Path, outputs: Path) -> dict[str, float]:
    """Compare a converted encoder with what the module itself gave.

    Args:
        file: the encoder's.
        outputs: .npz of `x` float32 (N, H, W, 3) in [-1, 1] and outputs of the module's `encode`.

    Returns:
        output's name -> greatest absolute difference.

    Raises: TeacherError where one differs by more than `CLOSE`, or there is none to compare.
    """
    import torch

    from pipeline.teachers.gan.bigbigan import encoder
    from pipeline.teachers.recording.taps import Recorder

    arrays = read_npz(outputs, ["x", *OUTPUTS], limit=1 << 32, error=TeacherError)
    named = {name: tap for name, tap in OUTPUTS.items() if name in arrays}
    if "x" not in arrays or not named:
        raise TeacherError(
            f"{outputs}: holds {', '.join(arrays)}, allowed x and {', '.join(OUTPUTS)}."
        )
    images = torch.from_numpy(arrays["x"].astype(np.float32)).permute(0, 3, 1, 2)
    size = (images.shape[2], images.shape[3])
    known = encoder.describe(file, {"generator": "", "z": "mean"}, size)
    network = known.read(torch.float32)
    taps = {tap.name: tap for tap in known.taps}
    missing = [name for name, tap in named.items() if tap not in taps]
    if missing:
        raise TeacherError(f"{file}: no {', '.join(missing)}, which {outputs} has.")
    recorder = Recorder(network.module, [taps[tap] for tap in named.values()])
    with torch.inference_mode():
        maps, _ = recorder.run(lambda: network(images))
    far = {
        name: float(np.abs(maps[tap].numpy() - arrays[name]).max()) for name, tap in named.items()
    }
    if not all(value <= CLOSE for value in far.values()):
        raise TeacherError(
            f"{file}: differs from the module by {far}, allowed {CLOSE}. Try --last_relu, --bn_eps "
            "and --shortcut otherwise."
        )
    return far


def main(argv: Sequence[str]) -> int:
    """Convert as the arguments say; exit code 0."""
    options = _parser().parse_args(argv)
    source, target = Path(options.variables), Path(options.target)
    variables = weights.read_arrays(source)
    layers = sort_layers(variables, scope=options.scope, where=str(source))
    units = tuple(int(count) for count in options.units.split(","))
    told = Told(units=units, latent=options.latent, shortcut=options.shortcut)
    tensors, architecture = arrange(layers, told, where=str(source))
    metadata = {
        "architecture": architecture,
        "bn_eps": repr(options.bn_eps),
        "image_size": str(options.image_size),
        "last_relu": options.last_relu,
    }
    _write(target, tensors, metadata, Path(options.check) if options.check else None)
    return 0


def _write(target: Path, tensors: Arrays, metadata: dict[str, str], outputs: Path | None) -> None:
    from safetensors.numpy import save_file

    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    save_file(tensors, partial, metadata=metadata)
    try:
        if outputs is not None:
            far = check(partial, outputs)
            print("; ".join(f"{name} differs by {value:.1e}" for name, value in far.items()))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    numbers = sum(value.size for value in tensors.values())
    checked = "checked" if outputs else "NOT checked against the module (--check)"
    print(f"{target}: {metadata['architecture']}, {numbers:,} numbers, {checked}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.teachers.gan.bigbigan.convert",
        description="Make BigBiGAN's encoder.safetensors of the TensorFlow Hub module's variables.",
    )
    parser.add_argument("variables", help=".npz, in the order in which the graph was built")
    parser.add_argument("target", help=".safetensors to write")
    parser.add_argument("--bn_eps", type=float, required=True, help="epsilon of the norms")
    parser.add_argument(
        "--last_relu", choices=("true", "false"), required=True, help="a ReLU before the pooling"
    )
    parser.add_argument("--scope", default="encoder", help="part of its variables' names")
    parser.add_argument("--units", default="3,4,6,3", help="units per stage")
    parser.add_argument("--latent", type=int, default=120, help="numbers of z")
    parser.add_argument("--image_size", type=int, default=256, help="pixels")
    parser.add_argument("--shortcut", choices=("first", "last"), default="first", help="place")
    parser.add_argument("--check", help=".npz of images x and the module's outputs for them")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
