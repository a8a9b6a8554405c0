"""compare_gan's variables, saved as `.npz` where TensorFlow is at hand.

An array has its variable's name, with or without the scope of a Hub module (`module/`) and `:0`:
`generator/B1/up_conv1/kernel`, `discriminator/B0/down_conv2/kernel/u_var`. One file may hold both
networks and whatever training kept besides:

    with tf.Session(graph=graph) as session:
        saver.restore(session, checkpoint)       # or hub.Module(...) and the initializers
        names = [v.op.name for v in tf.global_variables()]
        numpy.savez("ssgan.npz", **dict(zip(names, session.run(tf.global_variables()))))

Read are `resnet_cifar` (32 px), `resnet_stl` (48 px) and `resnet5` (64 and 128 px): `fc_noise`,
blocks `B0`, `B1` ..., `final_norm` and `final_conv` of a generator; blocks, `disc_final_fc` and
`discriminator_rotation/score_classify` of a discriminator. Kernels are (height, width, in, out)
and (in, out). Averages of the weights (`ExponentialMovingAverage`) are taken where there are any.

Source: compare_gan 3.0, `resnet_ops.py`, `resnet5.py`, `arch_ops.py` and `ssgan.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dreamshard.errors import TeacherError
from pipeline.teachers.gan import spectral
from pipeline.teachers.gan.ssgan.layout import Block, DiscriminatorLayout, GeneratorLayout

Shapes = Mapping[str, tuple[int, ...]]
SUFFIX = ".npz"
AVERAGE = "/ExponentialMovingAverage"
SPECTRAL_EPS = 1e-6
"""The least length that a vector is divided by: TensorFlow bounds its square, by 1e-12."""
CONV = re.compile(r"(?P<block>B\d+)/(?P<scale>same|up|down)_(?P<conv>conv1|conv2|conv_shortcut)$")
CONVS = {"conv1": "conv1", "conv2": "conv2", "conv_shortcut": "shortcut"}
NORMS = {"bn1": "norm1", "bn2": "norm2"}
MOMENTS = {
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "accu/accu_mean": "running_mean",
    "accu/accu_variance": "running_var",
}
COUNTER = "accu/accu_counter"
"""Number of batches that `accu_mean` and `accu_variance` are the sums of."""
SIZES = {("B1", 4): 32, ("B0", 5): 48, ("B0", 6): 128}
"""(first block, number of blocks) of a discriminator -> pixels, where no generator tells them."""


def of_part(names: Mapping[str, str], part: str) -> dict[str, str]:
    """Return name within a network -> name in the file, averages instead of what they average.

    Args:
        names: plain name -> name in the file, as `plain_names` gives them.
        part: generator or discriminator.
    """
    stored_names: dict[str, str] = {}
    for name in sorted(names, key=lambda name: AVERAGE in name):  # averages come last, and win
        own = name.removesuffix(AVERAGE)
        if own.startswith(f"{part}/"):
            stored_names[own.removeprefix(f"{part}/")] = names[name]
        elif part == "discriminator" and own.startswith("discriminator_rotation/"):
            stored_names[f"rotation/{own.partition('score_classify/')[2]}"] = names[name]
    return {name: stored for name, stored in stored_names.items() if not _of_training(name)}


def plain_names(stored: Mapping[str, object]) -> dict[str, str]:
    """Return name without a Hub module's scope and without `:0` -> name in the file."""
    begins = re.compile(r"^.*?(?=(?:generator|discriminator|discriminator_rotation)/)")
    return {begins.sub("", name).removesuffix(":0"): name for name in stored}


def read_generator(
    shapes: Shapes, *, eps: float, upsample: str = "", where: str
) -> GeneratorLayout:
    """Read a generator's architecture.

    Args:
        shapes: name within the network -> shape.
        eps: of its normalisation, which no variable tells.
        upsample: of `UPSAMPLING`, "" for compare_gan's.
        where: names the file in errors.

    Raises:
        TeacherError: a network of compare_gan's that is not SS-GAN's.
        KeyError, ValueError: shapes of something else.
    """
    other = [name for name in shapes if re.match(r"embed_|.*/condition/|.*non_local", name)]
    if other:
        raise TeacherError(
            f"{where}: {other[0]}: classes or attention, which SS-GAN's generator does not have. "
            "It is of another architecture of compare_gan."
        )
    blocks = _blocks(shapes, "up")
    latent, flat = shapes["fc_noise/kernel"]
    bottom = round((flat / blocks[0].inputs) ** 0.5)
    if bottom * bottom * blocks[0].inputs != flat:
        raise ValueError(f"a first map of {flat} values for {blocks[0].inputs} channels")
    modulated = "final_norm/sbn/gamma/kernel" in shapes
    hidden = shapes.get("final_norm/sbn/hidden/kernel", (0, 0))[1]
    return GeneratorLayout(
        blocks=blocks,
        latent=latent,
        bottom=bottom,
        upsample=upsample or "zero_insertion",
        modulation=hidden if modulated else None,
        eps=eps,
        unsigned=True,
    )


def read_discriminator(
    shapes: Shapes, *, pool: str = "", image_size: int | None = None
) -> DiscriminatorLayout:
    """Read a discriminator's architecture.

    Args:
        shapes: name within the network -> shape.
        pool: of `POOLING`, "" for compare_gan's.
        image_size: pixels of the generator's images, where it is known.

    Raises: KeyError or ValueError for shapes of something else.
    """
    blocks = _blocks(shapes, "down")
    if image_size is None:
        image_size = SIZES.get((blocks[0].name, len(blocks)))
    reduction = int(2 ** sum(block.resample for block in blocks))
    return DiscriminatorLayout(
        blocks=blocks,
        image_size=image_size or 4 * reduction,
        pool=pool or "mean",
        rotations=shapes.get("rotation/kernel", (0, 0))[1],
        rectified=False,
        unsigned=True,
    )


def rename(
    variables: Mapping[str, Tensor], layout: GeneratorLayout | DiscriminatorLayout, *, where: str
) -> dict[str, Tensor]:
    """Give variables the names, order of axes and norms that our modules have.

    Args:
        variables: name within the network -> float32 value.
        layout: of the network.
        where: names the file in errors.

    Raises: TeacherError for spectral vectors that do not fit their weights.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in variables.items():
        scope, _, last = name.rpartition("/")
        if last == "u_var" or name.endswith(COUNTER):
            continue
        if last == "kernel":
            if (vector := variables.get(f"{name}/u_var")) is not None:
                value = value / _norm(value, vector, where=f"{where}: {name}/u_var")
            value, last = _turned(value), "weight"
            if scope == "fc_noise" and isinstance(layout, GeneratorLayout):
                value = _channels_first(value, layout)
        elif scope == "fc_noise" and isinstance(layout, GeneratorLayout):
            value = _channels_first(value, layout)
        if scope.endswith("accu") and last in ("accu_mean", "accu_variance"):
            value = value / variables[f"{scope}/accu_counter"]
        renamed[_own_name(scope, last)] = value.contiguous()
    return renamed


def _of_training(name: str) -> bool:
    return bool(re.search(r"/(Adam(_\d)?|Momentum|RMSProp(_\d)?|update_accus)$", name))


def _blocks(shapes: Shapes, way: str) -> tuple[Block, ...]:
    scales_of: dict[str, dict[str, str]] = {}
    for name in shapes:
        if (match := CONV.match(name.removesuffix("/kernel"))) and name.endswith("/kernel"):
            scales_of.setdefault(match["block"], {})[match["conv"]] = match["scale"]
    names = sorted(scales_of, key=lambda name: int(name[1:]))
    if not names or any(set(scales_of[name]) != set(CONVS) for name in names):
        raise ValueError(f"blocks {', '.join(names) or 'none'}, not whole ones with a shortcut")
    blocks = []
    for name in names:
        scales = scales_of[name]
        sizes = {conv: shapes[f"{name}/{scales[conv]}_{conv}/kernel"] for conv in CONVS}
        blocks.append(
            Block(
                name=name,
                inputs=sizes["conv1"][2],
                hidden=sizes["conv1"][3],
                outputs=sizes["conv2"][3],
                resample=scales["conv_shortcut"] == way,
                shortcut=sizes["conv_shortcut"][0],
            )
        )
    return tuple(blocks)


def _norm(kernel: Tensor, vector: Tensor, *, where: str) -> Tensor:
    """Return a kernel's spectral norm by one step from the stored vector, left or right."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    left = tuple(vector.shape) == (len(matrix), 1)
    return spectral.one_step(
        matrix if left else matrix.T, vector.flatten(), eps=SPECTRAL_EPS, where=where
    )


def _turned(kernel: Tensor) -> Tensor:
    """Bring (height, width, in, out) to (out, in, height, width), and (in, out) to (out, in)."""
    return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


def _channels_first(value: Tensor, layout: GeneratorLayout) -> Tensor:
    """Order the outputs of the first layer by channel, then cell; value (out, ...)."""
    cells, channels = layout.bottom**2, layout.blocks[0].inputs
    return value.reshape(cells, channels, -1).transpose(0, 1).reshape(value.shape)


def _own_name(scope: str, last: str) -> str:
    """Return our name of a variable; an unknown one keeps its own, and is refused as surplus."""
    if match := CONV.match(scope):
        return f"blocks.{match['block']}.{CONVS[match['conv']]}.{last}"
    names = {"fc_noise": "linear", "final_conv": "last", "disc_final_fc": "logit"}
    if scope in names or scope == "rotation":
        return f"{names.get(scope, scope)}.{last}"
    parts = scope.split("/")
    at = ""
    if parts[0] == "final_norm":
        at, parts = "norm", parts[1:]
    elif len(parts) > 1 and parts[1] in NORMS:
        at, parts = f"blocks.{parts[0]}.{NORMS[parts[1]]}", parts[2:]
    if at and parts[:1] == ["sbn"] and len(parts) == 2:
        return f"{at}.{parts[1]}.{last}"
    within = "/".join([*parts, last])
    if at and (within in MOMENTS or within in ("gamma", "beta")):
        return f"{at}.{MOMENTS.get(within, within)}"
    return f"{scope}/{last}"


def as_tensor(array: object) -> Tensor:
    """Return an array as float32, detached from its file."""
    return torch.tensor(array, dtype=torch.float32)
