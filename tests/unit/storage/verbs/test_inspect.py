from pathlib import Path

from storage.verbs.inspect import describe, summarize
from tests.feature_store import fill, make_dataset


def test_the_facts_of_a_dataset(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    fill(dataset, 20, invalid=(7, 8))
    dataset.grow(40)
    summary = summarize(dataset, max_errors=1)
    assert (summary.requested, summary.samples, summary.invalid) == (40, 20, 2)
    assert (summary.units, summary.missing) == (4, 4)
    assert summary.errors == {7: "truncated"}
    facts = {item.name: item for item in summary.arrays}
    assert list(facts) == ["image", "label", "mask", "up.1.t100", "emb", "top"]
    level = facts["up.1.t100"]
    assert (level.kind, level.stride, level.codec) == ("feature", 4, "float16")
    assert (level.raw_bytes, level.stored_bytes) == (48, 24)
    assert facts["top"].codec == "raw" and facts["image"].stored_bytes == 48
    assert summary.stored_bytes == 20 * sum(item.stored_bytes for item in summary.arrays)


def test_everything_recorded_is_described(tmp_path: Path) -> None:
    lines = dict(describe(make_dataset(tmp_path)))
    assert lines["licence"] == "test" and lines["image size"] == "4 x 4"
    assert lines["source"] == "kind test, count 20, digest digest-20"
    assert lines["layout samples_per_unit"] == "6" and lines["teacher"] == "kind noise"
    assert "numpy" in lines["libraries"] and lines["pins"].startswith("micro_batch 4")
