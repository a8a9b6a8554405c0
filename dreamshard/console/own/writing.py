"""Write recipes with the reason beside every choice."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dreamshard.config.yaml12 import dump_yaml
from dreamshard.console.own.look import Seen, shown
from dreamshard.console.own.presets import Choice
from dreamshard.foreign.shown import one_line
from pipeline.images.source import SourceConfig

BATCH = 64
PASSES = 30
FEWEST_STEPS, MOST_STEPS = 200, 20_000
MANY = 20_000
"""Images from which one view of each is enough."""
SMALL_UNIT = 256


@dataclass(frozen=True)
class Line:
    """Hold one setting of a recipe: its dotted key, its value, and why it is so."""

    key: str
    value: Any
    why: str = ""


def render(lines: Sequence[Line], *, head: Sequence[str]) -> str:
    """Return a recipe's text: nested by the dots of its keys, which are in the order given."""
    # A folder's name may hold line ends, and what follows one in a comment would be a setting.
    text, open_keys = [f"# {one_line(line)}".rstrip() for line in head], []
    for line in lines:
        *above, name = line.key.split(".")
        same = 0
        while same < min(len(above), len(open_keys)) and above[same] == open_keys[same]:
            same += 1
        text += [f"{'  ' * depth}{above[depth]}:" for depth in range(same, len(above))]
        open_keys = above
        value = dump_yaml(line.value, one_line=True)
        why = f" # {one_line(line.why)}" if line.why else ""
        text.append(f"{'  ' * len(above)}{name}: {value}{why}")
    return "\n".join(text) + "\n"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Hold what the recipes are written from.

    Args:
        name: of dataset and folder.
        out: folder of recipes, data and runs.
        command: that wrote them.
        gpu: whether there is one.
    """

    name: str
    out: Path
    command: str
    gpu: bool

    def place(self, *parts: str) -> str:
        """Return a path below the folder as it is written into recipes."""
        return shown(self.out.joinpath(*parts))

    def head(self, what: str) -> list[str]:
        """Return the first lines of a recipe."""
        return [
            what,
            f"Written by: {self.command}",
            f"Relative paths count from the folder where commands are typed: {os.getcwd()}",
        ]


def source_lines(key: str, config: SourceConfig) -> list[Line]:
    """Return the settings of a source that are not the defaults."""
    usual, lines = SourceConfig(), []
    for item in fields(SourceConfig):
        value = getattr(config, item.name)
        if value == getattr(usual, item.name):
            continue
        why = {
            "class_folders": "first-level folders are the classes" if value else "",
            "split": "the part to judge on" if value == "heldout" else "",
        }.get(item.name, "")
        lines.append(
            Line(f"{key}.{item.name}", shown(value) if item.name == "path" else value, why)
        )
    return lines


def teacher_lines(choice: Choice, *, note: str = "") -> list[Line]:
    """Return the settings of the teacher."""
    lines = [Line("teacher.kind", choice.kind)] if choice.kind != "diffusers" else []
    lines.append(Line("teacher.path", shown(choice.path), note or f"family {choice.family}"))
    if choice.part:
        lines.append(Line("teacher.part", choice.part, choice.note))
    strides = "strides that the teacher and the student share, coarsest first"
    lines.append(Line("teacher.levels", [*choice.levels], strides))
    if choice.timestep is not None:
        lines.append(Line("teacher.timesteps", [choice.timestep], choice.why))
    lines += [Line(f"teacher.settings.{name}", value) for name, value in choice.settings.items()]
    return lines


def size_lines(choice: Choice) -> list[Line]:
    """Return how images are brought to size."""
    height, width = choice.size
    lines = [Line("image.size", height, "pixels; what this teacher was made for")]
    return lines + ([Line("image.width", width)] if width != height else [])


def pretrain(plan: Plan, seen: Seen, choice: Choice) -> str:
    """Return the recipe of a teacher of the user's own images."""
    lines = [
        Line("out", shown(choice.path)),
        Line("licence", "unknown", "of the weights: say yours, datasets carry it on"),
        *source_lines("source", seen.source),
        Line("image.size", choice.size[0], "a small teacher learns small images"),
        Line("image.flip", "random", "remove it where left and right are not alike"),
        Line("unet.block_out_channels", [32, 64, 96, 128], "strides 1, 2, 4 and 8"),
        Line("unet.layers_per_block", 1),
        Line("steps", 4000, "hours on a CPU, minutes on a GPU; more is better"),
        Line("batch_size", 32),
        Line("lr", 6e-4),
        Line("warmup_steps", 200),
        Line("ema", 0.998, "the averaged weights are the teacher"),
        Line("checkpoint_every", 100, "what an interruption costs at most"),
    ]
    what = "A small diffusion teacher on these images, without labels."
    return render(lines, head=plan.head(what))


def views_of(seen: Seen) -> int:
    """Return how many views of each image are encoded."""
    return 1 if seen.count >= MANY else 2


def encode(plan: Plan, seen: Seen, choice: Choice, *, note: str = "") -> str:
    """Return the recipe of the features."""
    views = views_of(seen)
    lines = [
        Line("name", plan.name),
        Line("root", plan.place("data"), "datasets lie here; asking again costs a look-up"),
        Line("run_dir", plan.place("encode")),
        *teacher_lines(choice, note=note),
        *source_lines("source", seen.source),
        *size_lines(choice),
    ]
    if views > 1:
        lines.append(Line("image.views", views, "the image and a jittered view: there are few"))
    lines.append(Line("codec", "int8", "half of float16's bytes, same probes (README)"))
    if seen.count * views <= 32 * SMALL_UNIT:
        lines.append(Line("samples_per_unit", SMALL_UNIT, "a stopped run resumes by units"))
    lines.append(Line("micro_batch", 32, "less if memory runs out"))
    if plan.gpu:
        lines += [Line("device", "cuda", "a GPU was found"), Line("gpus_per_actor", 1)]
    return render(lines, head=plan.head("The teacher's features of these images, made once."))


def interpret(plan: Plan, seen: Seen, choice: Choice, *, labels: int) -> str:
    """Return the recipe of what names classes from a few labels."""
    lines = [
        Line("out", plan.place("interpreter")),
        Line("name", "classes", "of its soft labels"),
        Line("target", "label", "one class for an image; mask: one for every cell"),
        Line("classes", [*seen.classes]),
        Line("labelled", labels, "labels used, drawn by the seed; as asked"),
        Line("validation", max(0, min(50, seen.count - labels)), "others to judge it on"),
        *teacher_lines(choice),
        *source_lines("source", seen.source),
        *size_lines(choice),
    ]
    what = "An interpreter: the teacher's features of a few labelled images name their classes."
    return render(lines, head=plan.head(what))


def soft_labels(plan: Plan, seen: Seen, choice: Choice) -> str:
    """Return the recipe of soft labels of the same samples, which join the features."""
    lines = [
        Line("name", f"{plan.name}-soft-labels"),
        Line("root", plan.place("data")),
        Line("run_dir", plan.place("soft_labels")),
        *(line for line in teacher_lines(choice) if line.key != "teacher.levels"),
        Line("teacher.levels", [], "the features are there already"),
        Line("teacher.interpreter", plan.place("interpreter"), "made by interpret.yaml"),
        *source_lines("source", seen.source),
        *size_lines(choice),
    ]
    if views_of(seen) > 1:
        lines.append(Line("image.views", views_of(seen), "as in encode.yaml: the same samples"))
    if plan.gpu:
        lines += [Line("device", "cuda"), Line("gpus_per_actor", 1)]
    return render(_grouped(lines), head=plan.head("Soft labels of the same samples."))


def _grouped(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with those of one section beside one another."""
    tops = list(dict.fromkeys(line.key.partition(".")[0] for line in lines))
    return sorted(lines, key=lambda line: tops.index(line.key.partition(".")[0]))


def train(
    plan: Plan,
    *,
    dataset: str,
    samples: int,
    levels: Sequence[str],
    student: str,
    strides: Sequence[int],
    join: Sequence[str] = (),
) -> str:
    """Return the recipe of the student."""
    steps = min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(samples * PASSES / BATCH)))
    steps = math.ceil(steps / 10) * 10
    passes = f"{steps * BATCH / max(1, samples):.0f} passes over {samples:,} samples"
    lines = [
        Line("run_dir", plan.place("train")),
        Line("steps", steps, f"{passes}; a larger number extends a finished run"),
        Line("batch_size", BATCH),
        Line("data.dataset", dataset),
        *(
            [
                Line("data.join", [*join], "soft labels of the same samples"),
                Line("dreamteacher.mode", "mix", "features and soft labels; or label, feature"),
            ]
            if join
            else [Line("data.levels", [*levels], "by stride; all that were recorded")]
        ),
        Line("student.name", student, f"any timm name with maps of {', '.join(levels)} fits"),
        Line("student.strides", [*strides], "deeper ones, too, so that no part stays untrained"),
        Line("dreamteacher.attention_weight", 0, "regression alone learns more (README)"),
        Line("dreamteacher.width", 64),
        Line("optimizer.lr", 2e-3),
        Line("optimizer.weight_decay", 0.05),
        Line("optimizer.warmup", 0.1),
        Line("log_every", 10),
        Line("save_every", 100, "Ctrl-C saves, too"),
    ]
    return render(_grouped(lines), head=plan.head("A student backbone learns the features."))


def evaluate(plan: Plan, seen: Seen) -> str:
    """Return the recipe of what the student is worth."""
    assert seen.heldout is not None, "asked before"
    neighbours = [k for k in (1, 5, 20, 200) if 2 * k <= seen.count]
    lines = [
        Line("run_dir", plan.place("evaluate")),
        Line("student", plan.place("train")),
        Line("tasks", ["linear_probe", "knn"], "few_label, finetune, segmentation, ... as well"),
        Line("baselines", ["pixels", "random"], "what a student has to beat"),
        *source_lines("train_images", seen.source),
        *source_lines("heldout_images", seen.heldout),
        Line("knn.k", neighbours or [1], "neighbours that vote"),
    ]
    return render(lines, head=plan.head("What the frozen student is worth on labelled images."))


def check_recipe(verb: str, text: str, configs: Mapping[str, Any]) -> None:
    """Read a recipe back by the settings of its command: what is written must be accepted."""
    from dreamshard.config.yaml12 import parse_yaml
    from dreamshard.console.api.settings import config_of

    config_of(configs[verb], parse_yaml(text), {}, verb=verb)
