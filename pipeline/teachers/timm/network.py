"""A network of timm as a module whose taps are places that its values pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreamshard.errors import TeacherError
from pipeline.teachers import weights
from pipeline.teachers.timm.outline import CLASS, FINAL, POOLED, Outline, create, final_map, point

if TYPE_CHECKING:
    from pipeline.teachers.timm.choice import Choice

SLACK = 2
"""A network may hold this many times the numbers of its file, as with tables made for its size."""


class TimmModule(nn.Module):
    """Run a network once, as far as what is wanted of it.

    Args:
        model: of timm, whole.
        known: what it gives.

    Maps are timm's own intermediates, without the final norm: those of `features_only`. What the
    taps give passes `points`, where hooks take it.
    """

    def __init__(self, model: nn.Module, known: Outline) -> None:
        super().__init__()
        self.model, self.known = model, known
        names = [known.map_name(index) for index in range(len(known.maps))]
        self.wanted: Collection[str] = (*names, FINAL, CLASS, POOLED)
        self.points = nn.ModuleDict(
            {point(name).partition(".")[2]: nn.Identity() for name in self.wanted}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to the last of what is wanted."""
        known, model, given = self.known, self.model, images
        asked: Any = model
        indices = [k for k in range(len(known.maps)) if known.map_name(k) in self.wanted]
        last = [name for name in (FINAL, CLASS, POOLED) if name in self.wanted]
        if indices and last:
            final, maps = asked.forward_intermediates(images, indices=indices, output_fmt="NCHW")
        elif indices:
            final, maps = (
                None,
                asked.forward_intermediates(
                    images,
                    indices=indices,
                    output_fmt="NCHW",
                    stop_early=True,
                    intermediates_only=True,
                ),
            )
        else:
            final, maps = asked.forward_features(images), []
        for index, features in zip(indices, maps, strict=True):
            given = self._pass(known.map_name(index), features)
        for name in last:
            given = self._pass(name, self._of_final(name, final))
        return given

    def _of_final(self, name: str, final: Any) -> Tensor:
        known, model = self.known, self.model
        if name == FINAL:
            _, rows, columns, _ = known.maps[-1]
            return final_map(final, model, grid=(rows, columns), prefix=known.prefix)
        if name == CLASS:
            return final[:, 0]
        asked: Any = model
        return asked.forward_head(final, pre_logits=True)

    def _pass(self, name: str, value: Tensor) -> Tensor:
        return self.points[point(name).partition(".")[2]](value)


def load(choice: Choice, known: Outline, size: tuple[int, int], dtype: torch.dtype) -> TimmModule:
    """Build a network with its weights, frozen.

    Args:
        choice: which.
        known: its outline at this size.
        size: (height, width) that it sees, in pixels.
        dtype: of the computation.

    Raises: TeacherError for weights that are damaged or of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        model = _filled(choice, known, size) if choice.files else create(choice, size)
    module = TimmModule(model, known)
    return module.eval().requires_grad_(False).to(dtype)


def _filled(choice: Choice, known: Outline, size: tuple[int, int]) -> nn.Module:
    """Build a network and load its file the way timm does, which may rename and resize tables."""
    where = str(choice.files[0])
    state = weights.read(choice.files)
    held = sum(value.numel() for value in state.values())
    if not held:  # timm would look for weights elsewhere
        raise TeacherError(f"{where}: holds no weights. Fetch it again.")
    if known.parameters > SLACK * held + (1 << 20):
        raise TeacherError(
            f"{where}: got {held:,} numbers, allowed those of {choice.name}, which has "
            f"{known.parameters:,}. Is settings.name the network that this file is of?"
        )
    weights.refuse_not_finite(state, where=where)
    overlay = {
        "state_dict": state,
        "num_classes": _classes(choice, state),
        "label_offset": 0,
        "custom_load": False,
        **dict.fromkeys(("source", "url", "file", "hf_hub_id", "hf_hub_filename")),
    }
    try:
        model: Any = create(
            choice,
            size,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=overlay["num_classes"],
        )
    # What timm's own filters raise on tensors of another network depends on where they notice.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = "; ".join(lines[:3])[:400] or type(error).__name__
        raise TeacherError(
            f"{where}: the weights do not fit {choice.name} ({why}). Check settings.name."
        ) from error
    # timm keeps what it was given, the file's own tensors included.
    model.pretrained_cfg = model.default_cfg = {
        key: value for key, value in model.pretrained_cfg.items() if key != "state_dict"
    }
    return model


def _classes(choice: Choice, state: dict[str, Tensor]) -> int:
    """Return how many classes the file's classifier has; 0 without one."""
    named = choice.facts.get("classifier") or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    for head in (*heads, "head", "fc", "classifier", "head.fc"):
        weight = state.get(f"{head}.weight")
        if weight is not None and weight.ndim in (2, 4):
            return len(weight)
    return 0


class StudentModule(nn.Module):
    """Run a student as it was trained: its maps, and the mean of the deepest.

    Args:
        backbone: whole network of timm, or one of ours that gives its maps.
        strides: of the maps, finest first.
        indices: timm's numbers of the maps, or of the one that the neck takes; None for ours.
        neck: makes a plain transformer's maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        strides: Sequence[int],
        *,
        indices: Sequence[int] | None = None,
        neck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.indices = backbone, neck, indices
        self.names = [f"map.s{stride}" for stride in strides]
        self.wanted: Collection[str] = (*self.names, POOLED)
        self.points = nn.ModuleDict(
            {point(name).partition(".")[2]: nn.Identity() for name in self.wanted}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to the deepest map's mean (N, C)."""
        asked: Any = self.backbone
        if self.indices is None:
            maps = asked(images)
        else:
            maps = asked.forward_intermediates(
                images,
                indices=list(self.indices),
                norm=self.neck is not None,
                output_fmt="NCHW",
                stop_early=True,
                intermediates_only=True,
            )
        maps = maps if self.neck is None else self.neck(maps)
        for name, features in zip(self.names, maps, strict=True):
            self.points[point(name).partition(".")[2]](features)
        return self.points[POOLED](maps[-1].float().mean(dim=(2, 3)))
