"""A dataset: the one door to everything a folder of feature shards can do.

dataset = Dataset.create(root, recipe, levels=..., image_size=..., pins=..., extra={})
dataset.grow(num_samples)
with dataset.lease(run_id):
    for unit in dataset.missing(num_samples):
        with dataset.unit_writer(unit, count=..., run_id=run_id) as writer:
            writer.write(0, batch)
            writer.commit()
    dataset.roll_up(final=True)
snapshot = dataset.snapshot()
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from secrets import token_hex
from typing import Self

import numpy as np

from dreamshard.errors import DataError
from storage.codecs.arrays import codec_for
from storage.codecs.base import ArraySpec, Codec
from storage.codecs.bases import learned_part, put_basis, with_basis
from storage.formats.stores import STORES, Store
from storage.formats.writer import UnitWriter
from storage.fs.local import STAGING
from storage.fs.open import open_files
from storage.ledger import book as ledger
from storage.ledger import description, drops, leases, quarantine, requests
from storage.ledger.commits import Commit, latest_version, read_commit, withdraw
from storage.ledger.description import Description, library_versions, read_description
from storage.ledger.labels import read_version
from storage.ledger.leases import Lease
from storage.ledger.publish import Claim
from storage.ledger.versions import pin_latest, pin_version
from storage.schema import FeatureBatch, Level, Pins, Recipe
from storage.snapshot import Snapshot

_CHECK_SHARE = 0.02  # of the time may go into looking whether there is enough to roll up

log = logging.getLogger(__name__)


class Dataset:
    """Keep feature shards in one folder: made unit by unit, by any number of runs at once.

    Attributes:
        url: the dataset's folder.
        recipe: what decides its bytes.
        levels: what is recorded of each sample.
        image_size: height and width in pixels.
        pins: how every forward is run; fixed at creation.
        samples_per_unit: samples of one unit.
        arrays: the arrays stored, by name.
        store: where the units' files are.
    """

    def __init__(self, url: str, about: Description, *, fsync: bool = True) -> None:
        self.files = open_files(url)
        self.url, self.about, self.fsync = self.files.url, about, fsync
        self.recipe, self.levels, self.pins = about.recipe, about.levels, about.pins
        self.image_size, self.samples_per_unit = about.image_size, about.recipe.samples_per_unit
        self.arrays: dict[str, ArraySpec] = {spec.name: spec for spec in about.arrays}
        format_name = str(self.recipe.layout.get("format", "zarr"))
        if format_name not in STORES:
            raise DataError(
                f"{self.url}: layout.format: got {format_name!r:.40}, allowed {sorted(STORES)}."
            )
        self.store: Store = STORES[format_name](
            self.files, about.arrays, samples_per_unit=self.samples_per_unit
        )
        self._codecs: dict[str, Codec] = {}
        self._next_check = 0.0
        self._known_requests: set[int] = set()

    @classmethod
    def create(
        cls,
        root: str,
        recipe: Recipe,
        *,
        levels: Sequence[Level],
        image_size: tuple[int, int],
        pins: Pins,
        extra: Mapping[str, object] | None = None,
        images: bool = True,
        labels: bool = False,
        masks: bool = False,
        fsync: bool = True,
    ) -> Dataset:
        """Make the dataset of a recipe under a root, or return the one that is there.

        Args:
            root: folder of datasets.
            recipe: what decides the dataset's bytes, and its folder's name.
            levels: what is recorded of each sample.
            image_size: height and width in pixels.
            pins: how every forward is to be run.
            extra: JSON values to keep in `dataset.json`; `licence` is the weights' licence.
            images: store the images.
            labels: store the labels as an array too; the manifest has them in any case.
            masks: store the masks.
            fsync: flush what is written to disk.

        Returns:
            The dataset; its pins are those it was first created with.

        Raises:
            DataError: if another dataset is in that folder, or the root cannot be written.
        """
        rest, url = dict(extra or {}), f"{open_files(root).url}/{recipe.folder}"
        files = open_files(url)
        wanted = Description(
            recipe=recipe,
            levels=tuple(levels),
            image_size=(int(image_size[0]), int(image_size[1])),
            pins=pins,
            images=images,
            labels=labels,
            masks=masks,
            licence=str(rest.pop("licence", "unknown")),
            extra=rest,
            libraries=library_versions(),
            conditional_put=files.proof() if files.remote else "",
        )
        dataset = cls(url, wanted, fsync=fsync)
        made = dataset.files.write(description.KEY, wanted.to_json(), if_absent=True, fsync=fsync)
        dataset.files.prune(STAGING)
        if not made:
            dataset = cls.open(url, fsync=fsync)
            dataset._check_same(wanted)
        dataset._resize()
        return dataset

    @classmethod
    def open(cls, url: str, *, fsync: bool = True) -> Self:
        """Open a dataset by its folder.

        Raises:
            DataError: if there is none, it is damaged, or of a newer format.
        """
        return cls(url, read_description(open_files(url)), fsync=fsync)

    def __repr__(self) -> str:
        return f"Dataset({self.url!r})"

    def requested(self) -> int:
        """Return how many samples were requested so far.

        Raises:
            DataError: if the record that says so is damaged.
        """
        return requests.largest(self.files, self._known_requests)

    def grow(self, num_samples: int) -> None:
        """Request samples: the arrays cover the largest number ever requested.

        Args:
            num_samples: samples wanted in all; fewer than before changes nothing.
        """
        if num_samples > self.requested():
            requests.add(self.files, num_samples, fsync=self.fsync)
        self._resize()

    def missing(self, num_samples: int, *, book: ledger.Ledger | None = None) -> np.ndarray:
        """List the units to make so that the first `num_samples` samples are there.

        Args:
            num_samples: samples wanted in all.
            book: what is known of the units, where it was read already.

        Returns:
            int64, ascending.
        """
        return ledger.missing_units(
            self.files,
            book or ledger.read_ledger(self.files),
            num_samples=num_samples,
            samples_per_unit=self.samples_per_unit,
            ends=requests.ends(self.files),
        )

    def committed(self) -> dict[int, Commit]:
        """Read the commit records of all units that are done: one small file each."""
        book = ledger.read_ledger(self.files)
        rows = book.current.take(book.holds)
        pairs = zip(rows.unit.tolist(), rows.version.tolist(), strict=True)
        return {unit: read_commit(self.files, unit, version) for unit, version in pairs}

    def commit_of(self, unit: int) -> Commit | None:
        """Return a unit's commit record, None if it is not done."""
        version, holds = latest_version(self.files, unit)
        return read_commit(self.files, unit, version) if holds else None

    def codec(self, level: str) -> Codec:
        """Return a level's codec; a learned one with its basis, once that was fitted.

        Raises:
            DataError: if there is no such level, or the basis is damaged.
        """
        if level not in self._codecs:
            described = {item.name: item for item in self.levels}.get(level)
            if described is None:
                names = ", ".join(item.name for item in self.levels)
                raise DataError(f"{self.url}: got level {level!r:.80}, allowed {names}.")
            codec = with_basis(self.files, described, codec_for(self.recipe, described))
            learned = learned_part(codec)
            if learned is not None and learned.basis is None:
                return codec  # another process may fit it any moment
            self._codecs[level] = codec
        return self._codecs[level]

    def unfitted(self) -> list[str]:
        """Name the levels whose codecs must be fitted before the first unit is written."""
        learned = {level.name: learned_part(self.codec(level.name)) for level in self.levels}
        return [name for name, part in learned.items() if part is not None and part.basis is None]

    def fit(self, batch: FeatureBatch) -> None:
        """Fit the codecs that need it to some samples, once; the first fit is the one that stays.

        Args:
            batch: samples at fixed indices that stand for all (their keys and images are not
                used); rows that are not valid are left out.
        """
        for level in self.levels:
            if level.name in self.unfitted():
                values = batch.levels[level.name][np.asarray(batch.valid, bool)]
                put_basis(self.files, level, self.codec(level.name), values, fsync=self.fsync)
        self.files.prune(f"{STAGING}/put")

    def unit_writer(self, unit: int, *, count: int, run_id: str) -> UnitWriter:
        """Start to write a unit.

        Args:
            unit: its number.
            count: samples it will have; fewer than `samples_per_unit` only at the source's end.
            run_id: name of the run, whose lease guards the temporary files.
        """
        unit, count = int(unit), int(count)
        if unit < 0 or not 1 <= count <= self.samples_per_unit:
            raise DataError(
                f"{self.url}: got unit {unit} of {count} samples, allowed 1.."
                f"{self.samples_per_unit} samples from unit 0 on."
            )
        first = unit * self.samples_per_unit
        if count < self.samples_per_unit and first + count not in requests.ends(self.files):
            requests.add(
                self.files, first + count, fsync=self.fsync
            )  # so that this unit is known to be partial
            self._resize()
        return UnitWriter(
            self.files,
            self.store.open_unit(unit, run_id=run_id),
            codecs={level.name: self.codec(level.name) for level in self.levels},
            levels={level.name: level for level in self.levels},
            arrays=self.arrays,
            is_whole=self.store.holds,
            unit=unit,
            first=first,
            count=count,
            run_id=run_id,
            fsync=self.fsync,
        )

    def roll_up(self, *, final: bool = False) -> int:
        """Move commits into manifest parts; cheap to call often.

        Args:
            final: move all there are, at the end of a run; else only once they fill a part.

        Returns:
            How many commits were moved.
        """
        started = time.monotonic()
        if not final and started < self._next_check:
            return 0
        moved = ledger.roll_up(
            self.files, samples_per_unit=self.samples_per_unit, final=final, fsync=self.fsync
        )
        if final:
            quarantine.forget(self.files, ledger.read_ledger(self.files).done)
        self.files.prune(f"{STAGING}/put")
        now = time.monotonic()
        self._next_check = now + (now - started) / _CHECK_SHARE
        return moved

    def lease(self, run_id: str) -> Lease:
        """Return a context manager that keeps this run's temporary files its own while it lives."""
        return Lease(self.files, run_id, sweep=self.sweep)

    def sweep(self) -> int:
        """Remove what dead runs left behind; return how many files that were."""
        return leases.sweep(self.files, restore=self.restore)

    def restore(self, held: Claim) -> int:
        """Put a unit in order whose files may be nobody's; return how many were removed."""
        removed, unit = 0, held.unit
        if self.commit_of(unit) is None:
            for key in self.store.unit_keys(unit):
                removed += held.holds() and self.files.remove(key)
            self.store.prune(unit)
        commit = self.commit_of(unit)  # looked for again: this process may have been paused
        if commit is not None and not self.store.holds(commit):
            self.invalidate(unit, reason="its files were removed or replaced by a paused run")
        return removed

    def tidy(self) -> None:
        """Finish what a run that died at the very end left: its leftovers and its roll-up."""
        self.sweep()
        self.roll_up(final=True)

    def invalidate(self, unit: int, *, reason: str = "damaged") -> bool:
        """Withdraw a unit, so that the next run makes it again, and only it.

        Returns:
            Whether it was done before.
        """
        version, holds = latest_version(self.files, unit)
        return holds and withdraw(self.files, unit, version, reason=reason)

    def quarantine(self, unit: int, *, error: str, attempts: int) -> None:
        """Keep in the manifest why a unit could not be made; a later commit makes it void."""
        quarantine.note(self.files, unit, error=error, attempts=attempts, fsync=self.fsync)

    def quarantined(self) -> dict[int, str]:
        """Return the units that were left out, with their last errors."""
        return quarantine.errors(self.files, self.missing(self.requested()))

    def drop(self, keys: Sequence[str], *, reason: str) -> int:
        """Take samples out of every later snapshot; their rows stay where they are.

        A snapshot of an earlier version still shows them.

        Args:
            keys: the source's own names of the samples.
            reason: why, for the record.

        Returns:
            How many samples were dropped that had not been before.

        Raises:
            DataError: if a key is no sample's; then nothing is dropped.
        """
        alone = self.lease(f"drop-{token_hex(4)}") if self.files.remote else nullcontext()
        with alone:  # a store may not say which of two records was first
            snapshot = self.snapshot()
            wanted = drops.find_samples(snapshot.keys, keys, where=self.url)
            before = {index for drop in snapshot.drops for index in drop.samples}
            fresh = {index: key for index, key in wanted.items() if index not in before}
            if fresh:
                drops.add_drop(self.files, fresh, reason=reason, fsync=self.fsync)
        return len(fresh)

    def snapshot(self, version: str | None = None) -> Snapshot:
        """Show what is committed now, or what an earlier snapshot's version names.

        Raises:
            DataError: if that version cannot be shown any more.
        """
        requested, size = self.requested(), self.samples_per_unit
        if version is None:
            pinned = pin_latest(self.files, samples_per_unit=size, requested=requested)
        else:
            pinned = pin_version(self.files, version, samples_per_unit=size)
            requested = pinned.num_samples
        return Snapshot(
            self.files,
            pinned,
            requested=requested,
            levels=self.levels,
            codec_of=self.codec,
            store=self.store,
            labels=read_version(self.files, pinned.labels),
            classes=self.about.classes,
        )

    def _resize(self) -> None:
        """Bring the arrays' shape to what is requested; of two runs the larger request stays."""
        while self.store.num_samples() != (wanted := self.requested()):
            self.store.resize(wanted, fsync=self.fsync)
        self.files.prune(f"{STAGING}/put")

    def _check_same(self, wanted: Description) -> None:
        differences = self.about.differences(wanted)
        if differences:
            raise DataError(
                f"{self.url}: got a dataset that differs in {', '.join(differences)} from the one "
                "asked for, allowed the same. Choose another root, or another name."
            )
        if self.pins != wanted.pins:
            log.info("%s keeps the pins it was created with: %s", self.url, self.pins)
