"""What a network of timm can record at a given size, found out without computing anything.

The network is built and run once on torch's meta device, where tensors have shapes and no values.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamshard.errors import ConfigError, DreamshardError, Problem
from dreamshard.foreign.networks import bounded, number_of_weights, one_reason
from pipeline.teachers.recording.taps import Tap, depth_aliases, vector

if TYPE_CHECKING:
    from torch import nn

    from pipeline.teachers.timm.choice import Choice

FINAL, CLASS, POOLED = "final", "cls", "pooled"


@dataclass(frozen=True)
class Outline:
    """Say what a network gives.

    Args:
        maps: (channels, rows, columns, stride) of each of timm's intermediates, in its order.
        final: (channels, rows, columns) of the last features as a map; None where they are none.
        class_token: its width; 0 without one.
        pooled: width of what the classifier would see; 0 where that is no vector.
        prefix: tokens before those of the image: class, registers (count).
        parameters: of the whole network (count).
    """

    maps: tuple[tuple[int, int, int, int], ...]
    final: tuple[int, int, int] | None
    class_token: int
    pooled: int
    prefix: int
    parameters: int

    @property
    def plain(self) -> bool:
        """Return whether all maps have one stride: a plain transformer."""
        return len(self.maps) > 1 and len({stride for *_, stride in self.maps}) == 1

    def map_name(self, index: int) -> str:
        """Return the name of an intermediate: `block.3`, `stage.3`."""
        return f"{'block' if self.plain else 'stage'}.{index}"


def point(name: str) -> str:
    """Return the module of `TimmModule` that a tap's values pass."""
    return f"points.{name.replace('.', '_')}"


def outline(choice: Choice, size: tuple[int, int]) -> Outline:
    """Find out what a network gives for images of (height, width) pixels.

    Raises: ConfigError if it does not take that size, or arguments that a folder gives.
    """
    told = json.dumps([dict(choice.arguments), dict(choice.facts)], sort_keys=True, default=str)
    described = _outline(choice.name, told, size, _Held(choice))
    _, rows, columns, stride = described.maps[-1]
    if described.plain and (rows * stride, columns * stride) != size:
        hint = "With settings.input_size, images of any size are resized before the network."
        allowed = f"multiples of {stride} pixels, the patches of {choice.name}"
        raise ConfigError(Problem("image_size", f"{size[0]}x{size[1]}", allowed, hint))
    return described


class _Held:
    """Carry a value past a cache's key."""

    def __init__(self, value: Choice) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=16)
def _outline(name: str, _told: str, size: tuple[int, int], held: _Held) -> Outline:
    import torch

    choice = held.value
    try:
        with torch.device("meta"), torch.inference_mode():
            model = create(choice, size).eval()
            return _look(model, torch.zeros(1, 3, *size))
    except (DreamshardError, OSError, MemoryError):
        raise
    except Exception as error:  # a constructor's own, of a size or of arguments it does not know
        own = own_size(choice.facts)
        allowed = (
            f"a size that {name} takes, such as its own {own[0]}x{own[1]}"
            f"{f', with arguments that it takes: {_given(choice)}' if choice.arguments else ''} "
            f"({one_reason(error)})"
        )
        hint = "With settings.input_size, images of any size are resized before the network."
        raise ConfigError(Problem("image_size", f"{size[0]}x{size[1]}", allowed, hint)) from error


def _given(choice: Choice) -> str:
    return str(dict(choice.arguments))[:160]


def create(choice: Choice, size: tuple[int, int], **told: Any) -> nn.Module:
    """Build a network for images of (height, width) pixels, told as to `create_model`.

    Networks that are built for one size get this one.
    """
    import timm

    arguments: dict[str, Any] = dict(choice.arguments)
    fixed = choice.facts.get("fixed_input_size") or "img_size" in arguments
    if fixed and size != own_size(choice.facts):
        arguments["img_size"] = size
    if choice.told == "file":
        told["pretrained_cfg"] = {**choice.facts, "architecture": choice.name.partition(".")[0]}
    classes = choice.facts.get("num_classes", 0)
    with bounded(arguments):
        return timm.create_model(
            choice.name.partition(".")[0] if choice.told == "file" else choice.name,
            **{"num_classes": classes, **told},
            **arguments,
        )


def own_size(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Return a network's own image size, (height, width) in pixels."""
    _, height, width = facts.get("input_size", (3, 224, 224))
    return int(height), int(width)


def _look(model: Any, images: Any) -> Outline:
    entries: Any = model.feature_info
    entries = entries if isinstance(entries, list) else entries.get_dicts()
    final, maps = model.forward_intermediates(images, output_fmt="NCHW")
    listed = tuple(
        (
            int(features.shape[1]),
            int(features.shape[2]),
            int(features.shape[3]),
            int(entry["reduction"]),
        )
        for features, entry in zip(maps, entries, strict=True)
    )
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    grid = tuple(int(value) for value in maps[-1].shape[-2:])
    last = final_map(final, model, grid=(grid[0], grid[1]), prefix=prefix)
    has_class = getattr(model, "cls_token", None) is not None and prefix > 0
    pooled: Any = model.forward_head(final, pre_logits=True)
    flat = hasattr(pooled, "ndim") and pooled.ndim == 2
    return Outline(
        maps=listed,
        final=None if last is None else tuple(int(v) for v in last.shape[1:]),  # type: ignore[arg-type]
        class_token=int(final.shape[-1]) if has_class and last is not None else 0,
        pooled=int(pooled.shape[-1]) if flat else 0,
        prefix=prefix,
        parameters=number_of_weights(model),
    )


def final_map(final: Any, model: Any, *, grid: tuple[int, int], prefix: int) -> Any:
    """Return the last features as a map (N, C, H, W); None where they are none.

    Args:
        final: what `forward_features` gives.
        model: whose; it says where the channels are.
        grid: of its last intermediate.
        prefix: tokens that stand before those of the image (count): class, registers.
    """
    if not hasattr(final, "ndim"):
        return None
    if final.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return final.permute(0, 3, 1, 2) if channels_last else final
    rows, columns = grid
    if final.ndim != 3 or final.shape[1] - prefix != rows * columns:
        return None
    tokens = final[:, prefix:]
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)


def list_taps(
    known: Outline, *, image_size: tuple[int, int], seen: tuple[int, int]
) -> tuple[tuple[Tap, ...], dict[str, str]]:
    """List the taps of a network in the order they are computed, and their aliases.

    Args:
        known: what it gives.
        image_size: (height, width) of the images, in pixels.
        seen: (height, width) that the network sees, where images are resized for it.

    `s<stride>` is the deepest map of a stride; of a plain transformer it is `final`, behind the
    last norm, as single channels of the blocks' own sums dwarf all others.
    """
    listed: list[Tap] = []

    def add(name: str, channels: int, cells: tuple[int, int], stride: int) -> None:
        scaled = max(1, round(stride * image_size[0] / seen[0]))
        # timm counts the cells: a side need not be a multiple of the stride.
        listed.append(Tap(name, point(name), channels, scaled, form=(channels, *cells)))

    for index, (channels, rows, columns, stride) in enumerate(known.maps):
        add(known.map_name(index), channels, (rows, columns), stride)
    if known.final is not None:
        channels, rows, columns = known.final
        add(FINAL, channels, (rows, columns), max(1, round(seen[0] / rows)))
    maps = tuple(listed)
    aliases = {f"s{tap.stride}": tap.name for tap in maps if known.plain or tap.name != FINAL}
    if known.plain:
        aliases = {**depth_aliases(maps[: len(known.maps)]), **aliases}
    for name, width in ((CLASS, known.class_token), (POOLED, known.pooled)):
        if width:
            listed.append(vector(name, point(name), width))
    return tuple(listed), aliases
