"""Which images judge the ablations, how work is shared, and how differences are paired."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import ablations, cifar10
from benchmarks.ablation_variants import BASE, VARIANTS


def test_encoded_images_do_not_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ablations, "SAMPLES_PER_UNIT", 10)
    train = np.arange(100), np.arange(100) % 10
    held = np.arange(1000, 1005), np.arange(5)
    options = Namespace(probe_images=20, samples=75, unseen=30, out=tmp_path)
    monkeypatch.setattr(cifar10, "images", lambda _: [train, held])
    ablations.read_images(options)
    (known, labels), (judges, truth) = options.loaded
    assert known.tolist() == list(range(20)) and len(labels) == 20
    assert judges.tolist() == [*range(1000, 1005), *range(85, 100)], "80 were encoded: whole units"
    assert len(truth) == len(judges) and options.heldout == 5
    monkeypatch.setattr(cifar10, "images", lambda _: pytest.fail("decoded already"))
    again = Namespace(probe_images=20, samples=75, unseen=30, out=tmp_path)
    ablations.read_images(again)
    assert again.loaded[1][0].tolist() == judges.tolist() and again.heldout == 5


def test_differences_are_paired_by_seed() -> None:
    base = {seed: {"linear_100": 50.0 + seed, "knn_20": 40.0} for seed in range(3)}
    int8 = {seed: {"linear_100": 51.0 + seed, "knn_20": 40.0 + seed} for seed in range(3)}
    table = ablations.compare({BASE: base, "int8": int8})
    assert table["int8"]["linear_100"]["difference"] == pytest.approx(1)
    assert table["int8"]["linear_100"]["half_interval"] == pytest.approx(0)
    # Student's t with 2 degrees of freedom: 4.303 x 1 / sqrt(3).
    assert table["int8"]["knn_20"]["half_interval"] == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert "difference" not in table[BASE]["linear_100"]
    other = ablations.compare({BASE: base, "int8": int8}, against="int8")
    assert other[BASE]["linear_100"]["difference"] == pytest.approx(-1)
    assert "difference" not in other["int8"]["linear_100"]


def test_a_seed_that_one_side_lacks_is_no_pair() -> None:
    base = {seed: {"linear_100": 50.0, "knn_20": 40.0} for seed in (0, 1)}
    int8 = {seed: {"linear_100": 50.0 + seed, "knn_20": 40.0} for seed in (1, 2, 3)}
    found = ablations.compare({BASE: base, "int8": int8})["int8"]
    assert found["seeds"] == 3 and found["linear_100"]["pairs"] == 1
    assert found["linear_100"]["difference"] == 1
    assert found["linear_100"]["half_interval"] is None


def test_a_job_is_taken_once(tmp_path: Path) -> None:
    assert ablations.claimed(tmp_path / "claims" / "one")
    assert not ablations.claimed(tmp_path / "claims" / "one")
    assert ablations.claimed(tmp_path / "claims" / "other")


def test_lines_that_are_no_job_are_named(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("0 base\n12 CompRess 1q, queue 64\n")
    assert ablations.read_jobs(jobs) == [(0, "base"), (12, "CompRess 1q, queue 64")]
    jobs.write_text("0 base\none base\n")
    with pytest.raises(SystemExit, match=r"jobs.txt:2: got 'one base'"):
        ablations.read_jobs(jobs)


def test_tables_are_made_of_what_is_finished(tmp_path: Path) -> None:
    sizes = dict.fromkeys(
        "samples images batch_size width regressor_width probe_images unseen precision".split(), 1
    )
    options = Namespace(
        out=tmp_path, results=tmp_path / "kept", seeds=[0, 1], against=BASE, machine="", name="a",
        **sizes,
    )  # fmt: skip
    (tmp_path / "results").mkdir()
    for name, linear in ((BASE, 50.0), ("Reg", 51.0)):
        for seed in (0, 1):
            row = {"linear_100": linear + seed, "knn_20": 40.0, "settings": sizes}
            ablations.result_path(name, options, seed=seed).write_text(json.dumps(row))
    result = ablations.report([BASE, "Reg", "Gram"], options)
    assert list(result["table"]) == [BASE, "Reg"]
    (made,) = (tmp_path / "kept").glob("*.md")
    assert "| Reg | 2 | 51.5 (+1.00 ± 0.00) | 40.0 (+0.00 ± 0.00) | - | - |" in made.read_text()
    other = {"linear_100": 1.0, "knn_20": 1.0, "settings": sizes | {"width": 2}}
    ablations.result_path("Gram", options, seed=0).write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="different settings"):
        ablations.report([BASE, "Reg", "Gram"], options)


def test_variants_have_files_of_their_own() -> None:
    assert len({ablations.slug(name) for name in VARIANTS}) == len(VARIANTS)
