"""What may go, what goes, and what never does."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dreamshard.console.cli import load_verb
from dreamshard.errors import ConfigError, DataError
from storage.batches.reader import BatchReader
from storage.catalog import list_datasets
from storage.dataset import Dataset
from storage.ledger import holds
from storage.ledger.holds import pins
from storage.rows.pick import read_rows
from storage.verbs import collect as collect_module
from storage.verbs.collect import Garbage, collect, plan
from tests.feature_store import (
    LEVELS,
    all_keys,
    expected_keys,
    fill,
    make_dataset,
    make_recipe,
    write_unit,
)


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "disk" else f"memory:/{tmp_path}/root"


def made(root: str, *, samples: int = 12, name: str = "a", unit: int = 6, levels=LEVELS) -> Dataset:
    recipe = make_recipe(name=name, unit=unit, levels=levels)
    dataset = make_dataset(root, recipe=recipe, levels=levels)
    fill(dataset, samples)
    return dataset


def names(root: str) -> set[str]:
    return {url.rpartition("/")[2] for url, _ in list_datasets(root)}


def short(garbage: list[Garbage]) -> list[tuple[str, str]]:
    return sorted((item.kind, item.url.rpartition("/")[2]) for item in garbage)


def test_a_whole_dataset_has_no_garbage(root: str) -> None:
    made(root)
    assert plan(root) == []


def test_strays_and_leftovers_go_and_nothing_else(root: str) -> None:
    dataset = made(root)
    dataset.invalidate(1)
    dataset.files.write("staging/put/elsewhere-1-1.7", b"half")
    found = plan(root)
    assert [item.kind for item in found] == ["leftovers", "strays"]
    before = all_keys(dataset)
    assert collect(found[1:]) == len(dataset.arrays)
    assert before - all_keys(dataset) == set(dataset.store.unit_keys(1))
    assert fill(dataset, 12, run_id="again") == [1]
    assert plan(root) in ([], found[:1])  # the young file may be a live run's
    assert dataset.snapshot().holes == ()


def test_a_unit_made_again_since_the_plan_stays(root: str) -> None:
    dataset = made(root)
    dataset.invalidate(1)
    found = plan(root)
    fill(dataset, 12, run_id="again")
    assert collect(found) == 0
    assert all_keys(dataset) == expected_keys(dataset)


def test_the_latest_of_a_name_stay(root: str) -> None:
    old, new, other = made(root), made(root, unit=4), made(root, name="b")
    found = plan(root, keep_latest=1)
    assert [(item.kind, item.url) for item in found] == [("dataset", old.url)]
    assert found[0].bytes == 12 * sum(spec.row_bytes for spec in old.arrays.values())
    assert names(root) == {d.recipe.folder for d in (old, new, other)}  # a plan changes nothing
    assert collect(found) > 10
    assert names(root) == {d.recipe.folder for d in (new, other)}
    assert all_keys(old) == set()
    with pytest.raises(ConfigError, match="keep-latest: got 0"):
        plan(root, keep_latest=0)


def test_what_another_has_all_of_is_superseded(root: str) -> None:
    few = made(root, levels=LEVELS[:1])
    made(root, name="b", samples=6)
    assert plan(root, superseded=True) == []  # neither has all of the other
    whole = made(root, name="c", samples=12)
    found = short(plan(root, superseded=True))
    assert found == [("dataset", few.recipe.folder), ("dataset", found[1][1])]
    assert whole.url not in {item.url for item in plan(root, superseded=True)}


def test_of_two_alike_one_stays(root: str) -> None:
    first, second = made(root), made(root, name="b")
    found = plan(root, superseded=True)
    assert [item.url for item in found] == [second.url]
    holds.pin(second.files, name="paper", reason="cited")
    assert [item.url for item in plan(root, superseded=True)] == [first.url]


def test_pinned_datasets_stay(root: str) -> None:
    old = made(root)
    made(root, unit=4)
    found = plan(root, keep_latest=1)
    assert holds.pin(old.files, name="run-7", reason="checkpoint")
    assert not holds.pin(old.files, name="run-7", reason="again")
    assert plan(root, keep_latest=1) == []
    assert collect(found) == 0 and old.recipe.folder in names(root)  # pinned since the plan
    with pytest.raises(ConfigError, match=r"pinned \(run-7\)"):
        plan(root, remove=[old.recipe.folder])
    assert holds.unpin(old.files, name="run-7") and not holds.unpin(old.files, name="run-7")
    assert pins(old.files) == [] and len(plan(root, keep_latest=1)) == 1


def test_a_dataset_with_a_run_at_work_stays(root: str) -> None:
    dataset = made(root)
    made(root, unit=4)
    with dataset.lease("alive"):
        assert plan(root, keep_latest=1) == []
        with pytest.raises(ConfigError, match="a run is at work"):
            plan(root, remove=[dataset.recipe.folder])
    assert len(plan(root, keep_latest=1)) == 1


def test_what_a_run_took_up_since_the_plan_stays(root: str) -> None:
    dataset = made(root)
    made(root, unit=4)
    dataset.invalidate(1)
    found = plan(root, keep_latest=1)
    strays = plan(root)
    assert ([item.kind for item in found], [item.kind for item in strays]) == (
        ["dataset"],
        ["strays"],
    )
    before = all_keys(dataset)
    with dataset.lease("alive"):
        held = all_keys(dataset)
        assert collect(found) == collect(strays) == 0
        assert all_keys(dataset) == held >= before
    assert all_keys(dataset) == before
    assert collect(strays) == len(dataset.arrays) and collect(found) > 10


def test_what_is_read_stays(root: str) -> None:
    dataset = made(root)
    made(root, unit=4)
    dataset.invalidate(1)
    whole, strays = plan(root, keep_latest=1), plan(root)
    snapshot = dataset.snapshot()
    assert collect([]) == 0 and holds.readers(dataset.files) == []  # a look alone holds nothing
    read_rows(snapshot, "emb", range(3))
    assert holds.readers(dataset.files) == ["reader"]
    before = all_keys(dataset)
    assert collect(whole) == collect(strays) == 0 and all_keys(dataset) == before
    assert plan(root, keep_latest=1) == []
    with pytest.raises(ConfigError, match="read by reader"):
        plan(root, remove=[dataset.recipe.folder])
    del snapshot
    gc.collect()
    assert holds.readers(dataset.files) == []
    assert collect(strays) == len(dataset.arrays) and collect(whole) > 10


def test_a_training_run_holds_what_it_reads(root: str) -> None:
    dataset = made(root)
    with BatchReader(dataset.snapshot(), levels=["emb"], batch_size=4, max_open=1) as reader:
        reader.next()
        with pytest.raises(ConfigError, match="read by"):
            plan(root, remove=["a"])
        assert len([reader.next() for _ in range(20)]) == 20
    del reader
    gc.collect()
    assert len(plan(root, remove=["a"])) == 1


@pytest.mark.parametrize("who", ["pin", "lease", "reader"])
def test_whoever_comes_while_a_removal_looks_is_seen_by_it(
    root: str, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Put first, then look: the one that comes later sees the other, and the removal gives way."""
    dataset, stack = made(root), ExitStack()
    found, removals, seen = plan(root, remove=["a"]), holds.removal, []

    def come() -> None:
        if who == "pin":
            holds.pin(dataset.files, name="x", reason="")
        elif who == "lease":
            stack.enter_context(dataset.lease("alive"))
        else:
            seen.append(dataset.snapshot())
            read_rows(seen[0], "emb", range(3))

    @contextmanager
    def announced(files) -> Iterator[str]:
        with removals(files) as key:
            thread = threading.Thread(target=come)
            thread.start()
            folder = {"pin": "pins", "lease": "staging", "reader": holds.READERS}[who]
            ends = time.monotonic() + 10
            while not set(files.names(folder)) - {"readers", "removals", "put"}:
                assert time.monotonic() < ends
                time.sleep(0.001)
            yield key
        thread.join(10)
        assert not thread.is_alive()

    monkeypatch.setattr(collect_module, "removal", announced)
    assert collect(found) == 0
    assert dataset.snapshot().holes == () and dataset.files.names(holds.REMOVALS) == []
    stack.close()


def test_a_removal_that_slept_is_stopped_for_good(root: str, monkeypatch) -> None:
    """Its announcement was taken for dead and taken away: it cannot become final any more."""
    dataset = made(root)
    found, holders = plan(root, remove=["a"]), collect_module._holders

    def sleep(files, *, pinned: bool) -> tuple[str, ...]:
        assert holders(files, pinned=pinned) == ()
        for name in files.names(holds.REMOVALS):
            files.remove(f"{holds.REMOVALS}/{name}")
        assert holds.pin(dataset.files, name="x", reason="")
        return ()

    monkeypatch.setattr(collect_module, "_holders", sleep)
    assert collect(found) == 0
    assert dataset.snapshot().holes == () and pins(dataset.files) == ["x"]


def test_what_a_removal_left_in_the_middle_is_remains(root: str) -> None:
    dataset = made(root)
    made(root, name="b")
    with holds.removal(dataset.files) as announced:
        assert holds.make_final(dataset.files, announced)
    with pytest.raises(DataError, match="was removing"):
        Dataset.open(dataset.url)
    with pytest.raises(DataError, match="has removed or is removing"):
        dataset.lease("late").__enter__()
    with pytest.raises(DataError, match="has removed or is removing"):
        holds.pin(dataset.files, name="late", reason="")
    found = plan(root)
    assert short(found) == [("remains", dataset.recipe.folder)]
    assert collect(found) > 10 and plan(root) == []


def test_a_pin_whose_process_died_in_a_removed_dataset_is_remains(root: str, monkeypatch) -> None:
    dataset = made(root)
    made(root, name="b")
    files = dataset.files
    assert collect(plan(root, remove=[dataset.recipe.folder])) > 10
    monkeypatch.setattr(holds, "check_kept", lambda *_, **__: None)  # killed before it looked again
    assert holds.pin(files, name="late", reason="")
    found = plan(root)
    assert short(found) == [("remains", dataset.recipe.folder)]
    assert collect(found) == 1 and plan(root) == []


def test_strays_go_only_while_no_run_is_at_work_on_their_unit(root: str, monkeypatch) -> None:
    dataset = made(root)
    dataset.invalidate(1)
    strays, claims = plan(root), collect_module.claim

    @contextmanager
    def late(files, unit: int) -> Iterator[object]:
        if dataset.commit_of(unit) is None:  # a run comes between the look and the removal
            write_unit(dataset, unit, num_samples=12, run_id="other")
        with claims(files, unit) as held:
            yield held

    monkeypatch.setattr(collect_module, "claim", late)
    assert collect(strays) == 0
    assert all_keys(dataset) == expected_keys(dataset) and dataset.snapshot().holes == ()


def test_what_is_half_removed_is_seen_and_goes(root: str) -> None:
    dataset = made(root)
    made(root, name="b")
    dataset.files.remove("dataset.json")
    found = plan(root)
    assert short(found) == [("remains", dataset.recipe.folder)]
    assert collect(found) > 10 and plan(root) == []
    assert len(names(root)) == 1


def test_only_names_that_are_there_can_be_removed(root: str) -> None:
    made(root)
    with pytest.raises(ConfigError, match="--remove: got 'x', allowed a dataset's name: a"):
        plan(root, remove=["x"])
    assert len(plan(root, remove=["a"])) == 1


def test_commands(root: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset = made(root)
    clear, hold, drop = load_verb("gc"), load_verb("pin"), load_verb("drop")
    assert clear([root]) == 0 and "nothing to remove" in capsys.readouterr().out
    assert hold([dataset.url, "--reason", "cited"]) == 0
    assert "pinned (kept)" in capsys.readouterr().out
    with pytest.raises(ConfigError):
        clear([root, "--remove", "a"])
    assert hold([f"{root}/a", "--remove"]) == 0 and "not pinned" in capsys.readouterr().out
    (tmp_path / "keys").write_text("key/4\n\nkey/5\n", encoding="utf-8-sig")
    assert drop([dataset.url, "key/3", "--from-file", f"{tmp_path}/keys", "--reason", "x"]) == 0
    assert "dropped 3 samples" in capsys.readouterr().out
    assert (~Dataset.open(dataset.url).snapshot().valid).sum() == 3
    with pytest.raises(ConfigError, match="keys: got none"):
        drop([dataset.url, "--reason", "x"])
    with pytest.raises(ConfigError, match="--reason: got ' ', allowed a text"):
        drop([dataset.url, "key/1", "--reason", " "])
    with pytest.raises(ConfigError, match="from-file"):
        drop([dataset.url, "--from-file", f"{tmp_path}/none", "--reason", "x"])
    assert clear([root, "--remove", "a"]) == 0 and "nothing was removed" in capsys.readouterr().out
    assert len(names(root)) == 1
    assert clear([root, "--remove", "a", "--yes"]) == 0 and "removed" in capsys.readouterr().out
    assert clear([str(tmp_path)]) == 0
