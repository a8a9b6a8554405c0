"""The model card of an exported student: what it is, where it comes from, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.students.backbones import is_ours, timm_name
from dreamshard.foreign.shown import plain

if TYPE_CHECKING:
    from distill.students.card import StudentCard


def model_card(card: StudentCard) -> str:
    """Write a student's model card in the Hugging Face Hub's Markdown, with its YAML header.

    Args:
        card: the student's description; what it does not tell is called unknown.
    """
    name, origin = card.config.name, card.provenance
    method = origin.get("method", "unknown")
    # Without levels of a teacher it has learned from images alone, or from their labels.
    how = "on a frozen teacher's features" if card.levels else "on images"
    sections = [
        _header(card),
        f"# {timm_name(name)}, {'distilled' if card.levels else 'trained'} with {method}",
        f"A backbone without a classifier, trained by dreamshard {how}.",
        "## Use",
        _usage(card),
        "## Where it comes from",
        _table(_facts(card)),
    ]
    if card.metrics:
        figures = {key: _number(value) for key, value in card.metrics.items()}
        sections += ["## Figures at the end of training", _table(figures)]
    if card.untrained:
        modules = dict.fromkeys(".".join(name.split(".")[:2]) for name in card.untrained)
        listed = ", ".join(f"`{name}`" for name in modules)
        sections += ["## Not trained", f"These parts have their initial values: {listed}."]
    return "\n\n".join(sections) + "\n"


def _header(card: StudentCard) -> str:
    """Return the Hub's metadata; the licence is the user's to choose, under the teacher's."""
    library = "pytorch" if is_ours(card.config.name) else "timm"
    tags = ["image-feature-extraction", "knowledge-distillation", "dreamshard"]
    lines = [f"library_name: {library}", "license: other", "pipeline_tag: image-feature-extraction"]
    lines += [f"license_name: {_scalar(card.provenance.get('licence', 'unknown'))}"]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _scalar(value: object) -> str:
    """Return a text as one scalar of YAML, quoted where it could be anything else."""
    text = plain(_text(value))
    return text if re.fullmatch(r"[A-Za-z][\w.+ -]*", text) else json.dumps(text)


def _usage(card: StudentCard) -> str:
    mean, std = card.student["mean"], card.student["std"]
    size = f"{card.image_size[0]}x{card.image_size[1]}"
    lines = ["```python", "import timm  # from within this folder", ""]
    if is_ours(card.config.name):
        lines = ["```python", "from pathlib import Path"]
        lines += ["from distill.students.export import load_student"]
        lines += ["", 'student, card = load_student(Path("."))']
    else:
        lines += ['backbone = timm.create_model("local-dir:.", pretrained=True)', "# or by name:"]
        extra = f", img_size=({card.image_size[0]}, {card.image_size[1]})" * _sized(card)
        lines += [
            f'backbone = timm.create_model("{timm_name(card.config.name)}", num_classes=0{extra},',
            '                             checkpoint_path="model.safetensors")',
        ]
    lines += ["```", "", f"Images: RGB in 0..1, {size} in training, mean {mean}, std {std}."]
    return "\n".join(lines)


def _sized(card: StudentCard) -> bool:
    """Tell whether the network is built for one image size, which it must then be given."""
    from distill.students.backbones import takes_size

    return takes_size(card.config.name, image_size=card.size)


def _facts(card: StudentCard) -> dict[str, str]:
    origin = card.provenance
    source: Any = origin.get("source")
    data = f"{origin.get('samples', 'an unknown number of')} images"
    if isinstance(source, Mapping):
        data += f" of a {source.get('kind', 'unknown')} source (digest {source.get('digest', '')})"
    facts = {
        "teacher": _text(origin.get("teacher", "unknown")),
        "licence of the teacher's weights": _text(origin.get("licence", "unknown")),
        "data": data,
        "levels": ", ".join(card.levels) or "none",
        "recipe": f"{origin.get('method', 'unknown')}, {origin.get('steps', '?')} steps of "
        f"{origin.get('batch_size', '?')} images at {card.image_size[0]}x{card.image_size[1]}",
        "settings": _text(origin.get("settings") or "unknown"),
        "optimiser": _text(origin.get("optimizer", "unknown")),
        "dataset": f"content key {_text(origin.get('content_key', 'unknown'))}",
    }
    if origin.get("ema"):
        facts["weights"] = f"their moving average (decay {origin['ema']})"
    return facts


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(text: str) -> str:
    """Return a text for a cell of Markdown, in which no HTML of a file's counts as any."""
    return plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()).replace("|", "\\|")
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
