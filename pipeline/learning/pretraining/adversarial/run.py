"""One adversarial training from its last checkpoint to its end, whatever the method."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from dreamshard.config.words import command_line
from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign import trusted
from dreamshard.owner.parts import part_of
from dreamshard.progress import Progress, stage
from dreamshard.runfolder import RunFolder, trim_metrics
from pipeline.learning.checkpoint import checkpoints, flush, load_checkpoint, save_checkpoint
from pipeline.learning.figures import Figures
from pipeline.learning.loop import Taken
from pipeline.learning.pretraining import state, watch
from pipeline.learning.pretraining.adversarial import kept, looking
from pipeline.learning.pretraining.adversarial.objective import Objective
from pipeline.learning.pretraining.adversarial.play import Players, batches_of_a_step
from pipeline.learning.ranks import decided_by_chief, gathered_rows, together
from pipeline.learning.stopping import StopAfterStep

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.images.quality import Extractor
    from pipeline.learning.pretraining.batches import Batches

LOG_EVERY = 10
"""Steps between lines of metrics.jsonl."""
BEST = "best"
"""Folder of the run with the best teacher so far, whole and ready to be used."""
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Plan:
    """Say what a run does beside learning; the fields are settings of the same names.

    Args:
        folder, run_dir: of the teacher, and of the run's record.
        card: what the teacher's card says of settings and licence.
        half: compute in bfloat16.
    """

    kind: str
    folder: Path
    run_dir: Path
    budget: kept.Budget
    batch_size: int
    seed: int
    half: bool
    checkpoint_every: int
    sample_every: int
    num_samples: int
    distance_every: int
    distance_samples: int
    distance_extractor: str
    weights_dtype: str
    teacher: str
    card: Mapping[str, Any]

    def is_due(self, taken: Taken) -> bool:
        """Tell whether there is something to keep or show."""
        every = (self.checkpoint_every, self.sample_every, self.distance_every)
        return any(number and taken.due(number) for number in every)


class AdversarialRun:
    """Train, watch, keep; build one, then `go`.

    Args:
        plan: of the run.
        objective: the method, built.
        batches: of training images.
        recipe: what the run is of.
        accelerator: the processes.
        extract: opened features of the distance; None where none is measured, or on other ranks.
        record: opens the run's record, on rank zero.
    """

    def __init__(
        self, plan: Plan, objective: Objective, batches: Batches, *,
        recipe: kept.Recipe, start: kept.Start, accelerator: Accelerator, record: RunFolder | None,
        extract: Extractor | None,
    ) -> None:  # fmt: skip
        self.plan, self.objective, self.batches = plan, objective, batches
        self.recipe, self.start, self.accelerator = recipe, start, accelerator
        self.record = record
        self.players = Players(objective, seed=plan.seed, half=plan.half)
        self._measured = {"samples": plan.distance_samples, "extractor": plan.distance_extractor}
        # Distances by another extractor, or of other counts, compare with nothing measured now.
        alike = all(start.best.get(key) == value for key, value in self._measured.items())
        self.best = dict(start.best) if alike else {}
        self._extract = extract
        self._variety = float(self.best.get("variety", 0))
        self._distance: watch.ProxyDistance | None = None
        self._found: dict[str, float] = {}
        self._seconds = start.seconds

    def go(self) -> None:
        """Train from the last checkpoint until the budget is spent, then write the teacher."""
        budget, step = self.plan.budget, self._begin()
        per_step, first, begun = batches_of_a_step(self.objective), step, self._seconds
        batches = self.batches.between(step * per_step, budget.last_step * per_step)
        figures = Figures(self._diverged, gather=gathered_rows)
        over, started = budget.is_spent(step, begun), time.monotonic()
        with self._progress(step) as progress, StopAfterStep("pretrain") as stopping:
            while not over:
                step += 1
                spent = budget.progress(step - 1, self._seconds)
                figures.note(step, self.players.step(step, batches, progress=spent))
                if agreed := self._is_moment(step):
                    now = begun + time.monotonic() - started
                    self._seconds = decided_by_chief(lambda now=now: now)
                over = budget.is_spent(step, self._seconds)
                taken = Taken(step, {}, None, 0.0, skipped=False, last=over)
                stop = agreed and stopping.now(taken, every=LOG_EVERY)
                due = stop or self.plan.is_due(taken)
                if due or taken.due(LOG_EVERY):
                    self._tell(step, figures, progress)
                self._advance(progress, step)
                if due:
                    decided_by_chief(partial(self._keep_and_show, taken, stop=stop))
                if stop:
                    self._leave(stopping, step)
        batches.close()
        decided_by_chief(partial(self._finish, step, made=step - first))

    def _begin(self) -> int:
        """Load the last checkpoint, if there is one; return the steps done."""
        start = self.start
        if (checkpoint := start.checkpoint) is not None:
            together(lambda: load_checkpoint(checkpoint, self.players.parts()))
            self.objective.adaptive.update(start.adaptive)
        if self.record is not None:
            trim_metrics(self.record.path / "metrics.jsonl", step=start.step)
            sizes = [
                f"{name} {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
                for name, module in self.objective.networks.items()
            ]
            begun = f", going on at step {start.step}" if start.step else ""
            kind = "bfloat16" if self.plan.half else "float32"
            device = self.accelerator.device.type
            stage(
                f"pretrain {self.plan.kind}: {', '.join(sizes)} parameters, {device} {kind}{begun}"
            )
        return start.step

    def _is_moment(self, step: int) -> bool:
        """Tell whether processes agree after this step on the time and on stopping.

        What adapts does so on logged steps: stopped between two, it would go on otherwise.
        """
        rare = self.objective.adaptive or self.accelerator.num_processes > 1
        return not rare or step % LOG_EVERY == 0

    def _progress(self, step: int) -> Progress:
        """Show images where steps are the budget, seconds where minutes are."""
        plan, quiet = self.plan, self.record is None
        self._told_at, self._told_after = step, self._seconds
        if (minutes := plan.budget.minutes) is not None:
            total, done = math.ceil(minutes * 60), int(self._seconds)
            return Progress("pretrain", total=total, unit="s", initial=done, quiet=quiet)
        total, done = plan.budget.steps * plan.batch_size, step * plan.batch_size
        return Progress("pretrain", total=total, initial=done, quiet=quiet)

    def _advance(self, progress: Progress, step: int) -> None:
        timed = self.plan.budget.minutes is not None
        done = int(self._seconds) if timed else step * self.plan.batch_size
        progress.update(done - progress.done)

    def _leave(self, stopping: StopAfterStep, step: int) -> NoReturn:
        minutes = self.plan.budget.minutes
        if minutes is None:
            stopping.leave(step, self.plan.budget.steps)
        stopping.leave(int(self._seconds), math.ceil(minutes * 60), unit="second")

    def _tell(self, step: int, figures: Figures, progress: Progress) -> None:
        """Log the means since the last line; what adapts does so by them."""
        means = figures.means()
        self.objective.adapt(step, means)
        progress.update(0, **means)
        steps, took = step - self._told_at, self._seconds - self._told_after
        self._told_at, self._told_after = step, self._seconds
        if self.record is not None:
            speed = steps * self.plan.batch_size / max(took, 1e-9)
            rate = {"img_per_s": speed, "seconds": round(self._seconds, 2)}
            self.record.log(step=step, **means, **self.objective.adaptive, **rate)

    def _keep_and_show(self, taken: Taken, *, stop: bool) -> None:
        """Write a checkpoint, draw samples and measure them when they are due."""
        plan, step = self.plan, taken.step
        if stop or taken.due(plan.checkpoint_every):
            self._save(step)
        if taken.last:  # the finished teacher's are drawn with it
            return
        if plan.sample_every and step % plan.sample_every == 0:
            self._draw(step)
        if plan.distance_every and step % plan.distance_every == 0:
            self._measure(step)

    def _save(self, step: int) -> None:
        if not self.players.is_finite():
            raise self._diverged(step, {"weights": float("nan")}, None)
        now = {
            "step": step, "key": self.recipe.key, "recipe": asdict(self.recipe),
            "seconds": self._seconds, "adaptive": dict(self.objective.adaptive), "best": self.best,
        }  # fmt: skip
        parts = self.players.parts()  # seen to be numbers just now
        save_checkpoint(self.plan.run_dir, parts, state=now, keep=1, finite=False)

    def _samples(self, numbers: range) -> Any:
        return self.objective.sample(self.players.averages, numbers)

    def _draw(self, step: int) -> None:
        self._sheet(self.plan.run_dir / f"samples-{step:06d}.png")
        looking.draw_curves(self.plan.run_dir)

    def _sheet(self, path: Path) -> None:
        """Draw what shows how far it is."""
        watch.draw_grid(self._samples(range(self.plan.num_samples)), path)

    def _examine(self) -> dict[str, float]:
        """Measure the finished networks by what training never saw, where there is such."""
        return {}

    def _next(self) -> tuple[str, ...]:
        """Spell what to do with the teacher, the usual thing first."""
        kind, folder = self.plan.kind, str(self.plan.folder)
        words = ("--teacher.kind", kind, "--teacher.path", folder)
        return (
            command_line("dreamshard", "inspect", "teacher", folder, "--kind", kind),
            command_line("dreamshard", "synthesize", *words, "--teacher.levels", "[s4,s2,s1]"),
        )

    def _measure(self, step: int) -> dict[str, float]:
        """Measure samples against training images, log and say it, keep the best teacher."""
        plan = self.plan
        images = self.batches.images.plain(plan.distance_samples)
        if self._distance is None:
            assert self._extract is not None, "opened where distances are measured"
            self._distance = watch.ProxyDistance(self._extract, images)
        figures = self._distance.measure(self._samples)
        count = min(len(images), looking.COMPARED)
        share = looking.variety(self._samples(range(count)), images)
        figures["variety"] = share
        said = looking.alarm(share, seen=step * plan.batch_size, best=self._variety)
        self._variety = max(share, self._variety)
        assert self.record is not None, "rank zero has one"
        self.record.log(step=step, **figures, **({"alarm": said} if said else {}))
        stage(f"step {step}: proxy Fréchet distance {figures['proxy_fd']:.4g}, kernel distance "
              f"{figures['proxy_kd']:.4g}, variety {share:.0%}")  # fmt: skip
        if said:
            stage(f"step {step}: {said}")
        if not self.best or figures["proxy_fd"] < self.best["proxy_fd"]:
            self.best = {"step": step, **figures, **self._measured}
            self._write(plan.run_dir / BEST, step, figures)
        return figures

    def _write(self, folder: Path, step: int, figures: Mapping[str, float]) -> None:
        """Write a teacher's folder, its card last."""
        plan = self.plan
        folder.mkdir(parents=True, exist_ok=True)
        (folder / state.CARD).unlink(missing_ok=True)
        kind = trusted.attribute(torch, plan.weights_dtype, allowed=DTYPES)
        files = self.objective.export(self.players.averages, folder, dtype=kind)
        self._sheet(folder / "samples.png")
        state.save_card(folder, self._card(step, figures, [path.name for path in files]))

    def _card(self, step: int, figures: Mapping[str, float], files: list[str]) -> dict[str, object]:
        plan = self.plan
        per_step = batches_of_a_step(self.objective)
        return {
            "kind": f"dreamshard {plan.kind} teacher",
            **plan.card,
            "recipe_key": self.recipe.key,
            "files": files,
            "steps": step,
            "trained_steps": step,
            "images_seen": step * plan.batch_size * per_step,
            "seconds": self._seconds,
            **({"proxy_distance": {**figures, **self._measured}} if figures else {}),
            **({"held_out": self._found} if self._found else {}),
        }

    def _finish(self, step: int, *, made: int) -> None:
        """Write the teacher: the last one, or the best where distances are measured."""
        plan, record = self.plan, self.record
        assert record is not None, "rank zero has one"
        if not checkpoints(plan.run_dir):  # nothing was left to do
            self._save(step)
        figures = self._measure(step) if plan.distance_every else {}
        self._found = self._examine()
        plan.folder.mkdir(parents=True, exist_ok=True)
        best = plan.run_dir / BEST
        self._draw(step)
        if figures and plan.teacher == "best" and self.best["step"] != step:
            self._take(best, step)
        else:
            self._write(plan.folder, step, figures)
        took = self._seconds - self.start.seconds
        record.stats(
            teacher=str(plan.folder), steps=step, seconds=took,
            img_per_s=made * plan.batch_size / max(took, 1e-9), best=self.best, **self._found,
        )  # fmt: skip
        record.propose(*self._next())

    def _take(self, best: Path, step: int) -> None:
        """Make the best teacher the finished one, its card last."""
        from dreamshard.foreign.text import read_json

        folder = self.plan.folder
        card = dict(read_json(best / state.CARD, infinite=True))
        (folder / state.CARD).unlink(missing_ok=True)
        for name in [*card["files"], "samples.png"]:
            part = part_of(folder / name)
            shutil.copyfile(best / name, part)
            flush(part)
            part.replace(folder / name)
        state.save_card(folder, {**card, "trained_steps": step, "seconds": self._seconds})
        stage(f"the teacher is the one of step {card['steps']}, the best by proxy distance")

    def _diverged(self, step: int, figures: Mapping[str, float], _: object) -> ConfigError:
        wrong = [f"{name} {value}" for name, value in figures.items() if value - value != 0]
        known = checkpoints(self.plan.run_dir)
        last_good = (
            f"{known[-1]} is kept, the last good one" if known else "There is no checkpoint yet"
        )
        hint = f"{last_good}. Lower the learning rates, or set --precision float32."
        got = f"{', '.join(wrong)} at step {step}"
        return ConfigError(Problem(self.plan.kind, got, "finite numbers", hint))
