"""Record a teacher's features of given images: `python pipeline/encode.py --config FILE`.

The features are those of one forward pass over each image: for a diffusion teacher the image is
brought to noise level `t` (seeded noise, or deterministically, as the teacher's settings say), and
the denoising network's decoder maps are recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # By path, also from an uninstalled checkout: the repository's root takes the place of this
    # folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dreamshard.config import load_config
from dreamshard.errors import run_main
from dreamshard.progress import begin
from pipeline.request.config import EncodeConfig

PROG = "dreamshard encode"


def main(argv: Sequence[str]) -> int:
    """Read the config and run the pipeline."""
    config = load_config(EncodeConfig, argv, prog=PROG, description=str(EncodeConfig.__doc__))
    teacher = config.teacher.path or config.teacher.kind
    begin(f"encode: {config.name} in {config.root}, with {teacher}")
    from pipeline.run import run

    return run(config, command=[*PROG.split(), *argv])[0]


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
