"""Draw samples from a generator and record its features: `python pipeline/synthesize.py ...`.

How features are recorded is the teacher's to say. A diffusion teacher samples with DDIM (or
DPM-Solver) from seeded noise, rounds the sample to 8 bits, and by default records the features of
*re-encoding* that sample at the requested timesteps (`teacher.settings.record: reencode`), so that
a synthesized record equals an encoded one of the same picture. `record: steps` keeps those met on
the way instead; the requested timesteps must then be steps of the sampler.
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
from pipeline.request.config import SynthesizeConfig

PROG = "dreamshard synthesize"


def main(argv: Sequence[str]) -> int:
    """Read the config and run the pipeline."""
    config = load_config(
        SynthesizeConfig, argv, prog=PROG, description=str(SynthesizeConfig.__doc__)
    )
    teacher = config.teacher.path or config.teacher.kind
    begin(f"synthesize: {config.name} in {config.root}, with {teacher}")
    from pipeline.run import run

    return run(config, command=[*PROG.split(), *argv])[0]


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
