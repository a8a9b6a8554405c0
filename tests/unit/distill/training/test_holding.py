from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.data.sets import TrainingSet
from distill.data.shards import ShardSource
from distill.training import holding
from dreamshard.errors import ConfigError, DataError
from storage.dataset import Dataset
from storage.ledger import holds
from storage.verbs import collect
from tests.unit.distill.small_data import add_units, make_dataset


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "_run", ["reader"])


def source_of(root: Path) -> ShardSource:
    return ShardSource(SimpleNamespace(), (make_dataset(root),))  # type: ignore[arg-type]


def test_a_run_that_may_go_on_keeps_its_dataset(tmp_path: Path) -> None:
    source, run = source_of(tmp_path / "data"), tmp_path / "my run"
    files = source.datasets[0].files
    holding.pin_for_checkpoints([source], run)
    holding.pin_for_checkpoints([source], run)  # it goes on
    (name,) = holds.pins(files)
    assert name == holding.name_run(run) and name.startswith("train-my-run-")
    assert source.version in files.read(f"pins/{name}.json").decode()
    assert name != holding.name_run(tmp_path / "other" / "my run")
    with pytest.raises(ConfigError, match="pinned"):
        collect.plan(str(tmp_path / "data"), remove=["boxes"])
    holding.unpin([source], run)
    holding.unpin([source], run)
    assert holds.pins(files) == [] and "pins" not in files.names("")
    assert len(collect.plan(str(tmp_path / "data"), remove=["boxes"])) == 1


def test_where_one_may_only_read_the_run_goes_on(tmp_path: Path, monkeypatch, caplog) -> None:
    source = source_of(tmp_path)

    def refuse(*_: object, **__: object) -> bool:
        raise DataError("Read-only file system")

    monkeypatch.setattr(source.datasets[0].files, "write", refuse)
    holding.pin_for_checkpoints([source], tmp_path / "run")
    assert "cannot be pinned" in caplog.text


def test_a_dataset_that_is_gone_is_an_error(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    _ = source.version
    collect.collect(collect.plan(str(tmp_path), remove=["boxes"]))
    with pytest.raises(DataError, match="has removed or is removing"):
        holding.pin_for_checkpoints([source], tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "name"), [("a b", "a-b"), (".hidden", "hidden"), ("", "run"), ("é/x", "--x")]
)
def test_names_of_runs(text: str, name: str) -> None:
    assert holds.as_name(text) == name


def test_real_images_beside_the_samples_are_kept_as_well(tmp_path: Path) -> None:
    """A run reads both to its end, and a resumed one at the versions it began with."""
    first, real = source_of(tmp_path / "first"), source_of(tmp_path / "real")
    sources = TrainingSet(first, levels=(), real=real).sources
    holding.pin_for_checkpoints(sources, tmp_path / "run")
    for root in ("first", "real"):
        with pytest.raises(ConfigError, match="pinned"):
            collect.plan(str(tmp_path / root), remove=["boxes"])
    holding.unpin(sources, tmp_path / "run")
    assert [holds.pins(one.datasets[0].files) for one in (first, real)] == [[], []]


def test_a_resumed_run_reads_the_real_images_it_began_with(tmp_path: Path) -> None:
    first, real = source_of(tmp_path / "first"), source_of(tmp_path / "real")
    began = real.version
    add_units(real.datasets[0], num_samples=96)
    grown = ShardSource(SimpleNamespace(), (Dataset.open(real.url),))  # type: ignore[arg-type]
    now = TrainingSet(first, levels=(), real=grown)
    assert grown.version != began and grown.num_valid == 96
    then = now.at(first.version, real=began)
    assert then.real is not None and (then.real.version, then.real.num_valid) == (began, 64)
    assert now.at(first.version).real is grown, "a checkpoint that does not tell"
