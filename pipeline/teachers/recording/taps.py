"""Taps: the places in a network where features are recorded, and the hooks that record them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.teachers.request import Recordable

if TYPE_CHECKING:
    from torch import Tensor, nn

STRIDES = (1, 2, 4, 8, 16, 32, 64)
"""Strides that have an alias (`s4`), in image pixels per cell."""
DEPTHS = {"d25": 0.25, "d50": 0.5, "d75": 0.75, "d100": 1.0}
"""Aliases by depth: after this share of a transformer's blocks."""


@dataclass(frozen=True)
class Tap:
    """Name one recordable output of a network.

    Args:
        name: what users ask for, e.g. `up.1`.
        module: dotted path of the module whose output it is.
        channels: of the map.
        stride: image pixels per cell of the map.
        item: which element of the output, for modules that return several.
        grid: cells (height, width) to fold a token sequence (N, T, C) into; None for maps.
        form: shape per sample of what is no map; see `vector`.
        kind: of its levels; see `request.Recordable`.
        dtype: of its levels.
        once: whether it is the same at every timestep and draw.

    A tap without a module is no output of the network: the teacher gives it by itself.
    """

    name: str
    module: str
    channels: int
    stride: int
    item: int = 0
    grid: tuple[int, int] | None = None
    form: tuple[int, ...] = ()
    kind: str = ""
    dtype: str = "float16"
    once: bool = False

    def shape(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Return (C, H, W) of the map for an image of (height, width) pixels."""
        if self.form:
            return self.form
        if self.grid is not None:
            return (self.channels, *self.grid)
        return (self.channels, image_size[0] // self.stride, image_size[1] // self.stride)

    def to_map(self, output: Any) -> Tensor:
        """Turn the module's output into a map (N, C, H, W), without copying where possible."""
        if isinstance(output, (tuple, list)):
            output = output[self.item]
        if self.grid is None:
            return output
        rows, _, channels = output.shape
        output = output[:, -self.grid[0] * self.grid[1] :]  # text tokens, if any, come first
        return output.transpose(1, 2).reshape(rows, channels, *self.grid)


def vector(name: str, module: str, *form: int, kind: str = "embedding") -> Tap:
    """Name an output that is no map: a pooled embedding, or a latent, kept as float32.

    Args:
        form: shape per sample, such as 512 for (N, 512).
        kind: embedding or latent.
    """
    dtype = "float32" if kind == "latent" else "float16"
    return Tap(name, module, form[-1], 0, form=form, kind=kind, dtype=dtype)


def table(taps: Iterable[Tap], image_size: tuple[int, int]) -> dict[str, Recordable]:
    """Return name -> what is recorded, as `request.expand_levels` takes it."""
    return {
        tap.name: Recordable(tap.shape(image_size), tap.stride, tap.kind, tap.dtype, tap.once)
        for tap in taps
    }


def stride_aliases(defaults: Iterable[Tap]) -> dict[str, str]:
    """Return `s<stride>` -> tap name; of several with one stride the last wins."""
    by_stride = {tap.stride: tap.name for tap in defaults}
    return {f"s{stride}": by_stride[stride] for stride in STRIDES if stride in by_stride}


def depth_aliases(blocks: Sequence[Tap]) -> dict[str, str]:
    """Return `d25` ... -> tap name, for the blocks of a transformer in their order."""
    last = len(blocks) - 1
    return {
        name: blocks[max(0, min(last, round(share * len(blocks)) - 1))].name
        for name, share in DEPTHS.items()
    }


class _Enough(Exception):
    """Stop a forward pass: everything asked for has been recorded."""


class Recorder:
    """Record the outputs of some modules of a network, running no more of it than they need.

    Args:
        root: the network; `taps` name its submodules.
        taps: what to record. Hooks stay on the modules for the recorder's life.
    """

    def __init__(self, root: nn.Module, taps: Sequence[Tap]) -> None:
        self._maps: dict[str, Tensor] | None = None
        self._wanted = len({tap.name for tap in taps})
        self._stop = True
        self._hooks = [
            root.get_submodule(tap.module).register_forward_hook(self._hook(tap)) for tap in taps
        ]

    def _hook(self, tap: Tap) -> Callable[..., None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._maps is None:
                return
            self._maps[tap.name] = tap.to_map(output)
            # The last wanted module ends the pass; the rest of the decoder is never computed.
            if self._stop and len(self._maps) == self._wanted:
                raise _Enough

        return record

    def run(
        self, call: Callable[[], Tensor], *, stop: bool = True
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Call the network and return what its taps gave.

        Args:
            call: runs one forward pass.
            stop: end the pass once every tap is recorded; False to get the output too.

        Returns:
            tap name -> map (N, C, H, W) or (N, *form), and the network's output (None when
            stopped early).
        """
        maps: dict[str, Tensor] = {}
        self._maps, self._stop = maps, stop
        output = None
        try:
            output = call()
        except _Enough:
            pass
        finally:
            self._maps = None
        return maps, output

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()


def costs(call: Callable[[], object], root: nn.Module, taps: Sequence[Tap]) -> dict[str, int]:
    """Count the floating-point operations needed to reach each tap.

    Args:
        call: runs the network once; on the meta device nothing is computed.
        root: the network's module.
        taps: places in it.

    Returns:
        tap name -> operations, with those of the whole pass under the name "output".
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    spent: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: spent.__setitem__(name, counter.get_total_flops())

    placed = [tap for tap in taps if tap.module]
    hooks = [root.get_submodule(t.module).register_forward_hook(hook(t.name)) for t in placed]
    with counter:
        call()
    for handle in hooks:
        handle.remove()
    return {**spent, "output": counter.get_total_flops()}
