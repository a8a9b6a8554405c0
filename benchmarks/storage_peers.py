"""Packaged readers of feature shards, each at its best setting, for `benchmarks/storage.py`.

A peer writes the same samples in its own format and yields shuffled batches of torch tensors.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Batches = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Peer:
    """One reader.

    Args:
        needs: modules it imports.
        loader: whether it is a packaged loader that a user would put into training as it is.
        workers: worker process counts to try.
        write: (folder, arrays) writes the samples.
        read: (folder, batch size, workers) yields batches without end.
    """

    needs: tuple[str, ...]
    loader: bool
    workers: tuple[int, ...]
    write: Callable[[Path, Arrays], None]
    read: Callable[[Path, int, int], Batches]

    def missing(self) -> list[str]:
        """Name the modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def orders(count: int, batch: int) -> Iterator[np.ndarray]:
    """Yield shuffled index batches, epoch after epoch."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]


def to_tensors(arrays: Arrays) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(rows) for name, rows in arrays.items()}


def collate(rows: list[Arrays]) -> dict[str, Any]:
    import torch

    return {
        name: torch.stack([torch.from_numpy(np.ascontiguousarray(row[name])) for row in rows])
        for name in rows[0]
        if not name.startswith("__")  # webdataset adds its keys
    }


def samples(arrays: Arrays) -> Iterator[Arrays]:
    for index in range(len(next(iter(arrays.values())))):
        yield {name: rows[index] for name, rows in arrays.items()}


# ---- webdataset


def write_webdataset(root: Path, arrays: Arrays) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{root}/%05d.tar", maxsize=64 << 20, verbose=0) as writer:
        for index, row in enumerate(samples(arrays)):
            parts = {f"{name}.npy": value for name, value in row.items()}
            writer.write({"__key__": f"{index:09d}", **parts})


def read_webdataset(root: Path, batch: int, workers: int) -> Batches:
    import webdataset

    urls = sorted(map(str, root.glob("*.tar")))

    def strip(row: dict[str, Any]) -> Arrays:
        found = {name.removesuffix(".npy"): row[name] for name in row if name.endswith(".npy")}
        return {name: np.array(value) for name, value in found.items()}

    stages = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False).repeat()
    stages = stages.shuffle(64).decode().map(strip)
    loader = webdataset.WebLoader(stages, batch_size=batch, num_workers=workers, collate_fn=collate)
    yield from loader


# ---- litdata


def _same(row: Arrays) -> Arrays:
    return row


def write_litdata(root: Path, arrays: Arrays) -> None:
    import torch
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(root), chunk_bytes=64 << 20)
    for index, row in enumerate(samples(arrays)):
        writer[index] = {k: torch.from_numpy(np.array(v)) for k, v in row.items()}
    writer.done()
    writer.merge(1)


def read_litdata(root: Path, batch: int, workers: int) -> Batches:
    import litdata

    while True:
        dataset = litdata.StreamingDataset(str(root), shuffle=True, seed=0)
        yield from litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=workers)


# ---- mosaicml-streaming


def write_mosaic(root: Path, arrays: Arrays) -> None:
    from streaming import MDSWriter

    columns = {
        name: f"ndarray:{rows.dtype.name}:{','.join(map(str, rows.shape[1:]))}"
        for name, rows in arrays.items()
    }
    with MDSWriter(out=str(root), columns=columns, size_limit=64 << 20) as writer:
        for row in samples(arrays):
            writer.write(row)


def read_mosaic(root: Path, batch: int, workers: int) -> Batches:
    import torch
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(root), shuffle=True, batch_size=batch)
    while True:
        yield from torch.utils.data.DataLoader(
            dataset, batch_size=batch, num_workers=workers, collate_fn=collate
        )


# ---- tensorstore


def _tensorstore(root: Path, name: str, rows: np.ndarray | None = None) -> Any:
    import tensorstore

    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{root}/{name}"},
    }
    if rows is None:
        return tensorstore.open(spec, open=True).result()
    spec["metadata"] = {
        "shape": list(rows.shape),
        "data_type": rows.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *rows.shape[1:]]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    return tensorstore.open(spec, create=True).result()


def write_tensorstore(root: Path, arrays: Arrays) -> None:
    for name, rows in arrays.items():
        _tensorstore(root, name, rows)[...] = rows


def read_tensorstore(root: Path, batch: int, workers: int) -> Batches:
    stores = {path.name: _tensorstore(root, path.name) for path in sorted(root.iterdir())}
    count = next(iter(stores.values())).shape[0]
    for picks in orders(count, batch):
        asked = {name: store[picks].read() for name, store in stores.items()}
        yield to_tensors({name: future.result() for name, future in asked.items()})


# ---- tensordict


def write_tensordict(root: Path, arrays: Arrays) -> None:
    from tensordict import TensorDict

    count = len(next(iter(arrays.values())))
    TensorDict(to_tensors(arrays), batch_size=[count]).memmap(str(root))


def read_tensordict(root: Path, batch: int, workers: int) -> Batches:
    import torch
    from tensordict import TensorDict

    stored = TensorDict.load_memmap(str(root))
    for picks in orders(len(stored), batch):
        yield dict(stored[torch.from_numpy(picks)].items())


# ---- LMDB


def write_lmdb(root: Path, arrays: Arrays) -> None:
    import lmdb

    size = 2 * sum(rows.nbytes for rows in arrays.values()) + (1 << 28)
    layout = [(name, rows.dtype.str, rows.shape[1:]) for name, rows in arrays.items()]
    (root / "layout.json").write_text(json.dumps(layout))
    with lmdb.open(str(root), map_size=size, sync=False) as store:
        for index, row in enumerate(samples(arrays)):
            with store.begin(write=True) as transaction:
                value = b"".join(np.ascontiguousarray(part).tobytes() for part in row.values())
                transaction.put(b"%09d" % index, value)


def read_lmdb(root: Path, batch: int, workers: int) -> Batches:
    import lmdb

    layout = json.loads((root / "layout.json").read_text())
    store = lmdb.open(str(root), readonly=True, lock=False, readahead=False)
    with store.begin(buffers=True) as transaction:
        count = transaction.stat()["entries"]
        for picks in orders(count, batch):
            rows = []
            for index in picks:
                value, at, row = transaction.get(b"%09d" % index), 0, {}
                for name, dtype, shape in layout:
                    size = int(np.prod(shape))
                    row[name] = np.frombuffer(value, dtype, size, at).reshape(shape)
                    at += size * np.dtype(dtype).itemsize
                rows.append(row)
            yield to_tensors({name: np.stack([r[name] for r in rows]) for name in rows[0]})


# ---- HDF5


def write_h5py(root: Path, arrays: Arrays) -> None:
    import h5py

    with h5py.File(root / "data.h5", "w") as file:
        for name, rows in arrays.items():
            file.create_dataset(name, data=rows)


def read_h5py(root: Path, batch: int, workers: int) -> Batches:
    import h5py

    with h5py.File(root / "data.h5", "r") as file:
        arrays: dict[str, Any] = {name: file[name] for name in file}
        count = len(next(iter(arrays.values())))
        for picks in orders(count, batch):
            found = {}
            for name, rows in arrays.items():
                found[name] = np.empty((batch, *rows.shape[1:]), rows.dtype)
                for place, index in enumerate(picks):
                    rows.read_direct(found[name], np.s_[index], np.s_[place])
            yield to_tensors(found)


# ---- safetensors: a whole shard at a time, shuffled within it


def write_safetensors(root: Path, arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    count = len(next(iter(arrays.values())))
    step = max(1, count // 4)
    for start in range(0, count, step):
        part = {n: np.ascontiguousarray(r[start : start + step]) for n, r in arrays.items()}
        save_file(part, str(root / f"{start:09d}.safetensors"))


def read_safetensors(root: Path, batch: int, workers: int) -> Batches:
    import torch
    from safetensors.torch import load_file

    rng = np.random.default_rng(0)
    while True:
        for path in rng.permutation(sorted(map(str, root.iterdir()))):
            tensors = load_file(path)
            count = len(next(iter(tensors.values())))
            order = torch.from_numpy(rng.permutation(count))
            for start in range(0, count - batch + 1, batch):
                picks = order[start : start + batch]
                yield {name: rows.index_select(0, picks) for name, rows in tensors.items()}


# ---- Arrow IPC, mapped


def write_arrow(root: Path, arrays: Arrays) -> None:
    import pyarrow as pa

    columns, meta = {}, {}
    for name, rows in arrays.items():
        size = rows.nbytes // len(rows)
        buffer = pa.py_buffer(np.ascontiguousarray(rows))
        columns[name] = pa.Array.from_buffers(pa.binary(size), len(rows), [None, buffer])
        meta[name] = f"{rows.dtype.str};{','.join(map(str, rows.shape[1:]))}"
    table = pa.table(columns).replace_schema_metadata(meta)
    with pa.ipc.new_file(str(root / "data.arrow"), table.schema) as writer:
        writer.write_table(table)


def read_arrow(root: Path, batch: int, workers: int) -> Batches:
    import pyarrow as pa

    with pa.memory_map(str(root / "data.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        views = {}
        for name in table.column_names:
            dtype, shape = table.schema.metadata[name.encode()].decode().split(";")
            data = table[name].chunk(0).buffers()[1]
            views[name] = np.frombuffer(data, dtype).reshape(
                table.num_rows, *map(int, shape.split(","))
            )
        for picks in orders(table.num_rows, batch):
            yield to_tensors({name: rows[picks] for name, rows in views.items()})


# ---- one npy file an array, mapped, and numpy's own indexing: no reader at all


def write_npy(root: Path, arrays: Arrays) -> None:
    for name, rows in arrays.items():
        np.save(root / f"{name}.npy", rows)


def read_npy(root: Path, batch: int, workers: int) -> Batches:
    mapped = {path.stem: np.load(path, mmap_mode="r") for path in sorted(root.iterdir())}
    arrays = {name: rows.view(np.ndarray) for name, rows in mapped.items()}
    for picks in orders(len(next(iter(arrays.values()))), batch):
        yield to_tensors({name: rows[picks] for name, rows in arrays.items()})


# ---- npy files, one a sample, through a plain DataLoader: what most people write first


class _NpyFiles:
    def __init__(self, root: Path) -> None:
        self.paths = sorted(root.glob("*.npz"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Arrays:
        with np.load(io.BytesIO(self.paths[index].read_bytes())) as row:
            return dict(row)


def write_npz(root: Path, arrays: Arrays) -> None:
    for index, row in enumerate(samples(arrays)):
        np.savez(root / f"{index:09d}.npz", **row)  # type: ignore[arg-type]


def read_npz(root: Path, batch: int, workers: int) -> Batches:
    import torch

    while True:
        yield from torch.utils.data.DataLoader(
            _NpyFiles(root),  # type: ignore[arg-type]
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            collate_fn=collate,
        )


PEERS: dict[str, Peer] = {
    "webdataset": Peer(("webdataset",), True, (0, 2), write_webdataset, read_webdataset),
    "litdata": Peer(("litdata",), True, (0, 2), write_litdata, read_litdata),
    "mosaicml-streaming": Peer(("streaming",), True, (0, 2), write_mosaic, read_mosaic),
    "tensorstore": Peer(("tensorstore",), True, (0,), write_tensorstore, read_tensorstore),
    "tensordict": Peer(("tensordict",), True, (0,), write_tensordict, read_tensordict),
    "lmdb": Peer(("lmdb",), False, (0,), write_lmdb, read_lmdb),
    "h5py": Peer(("h5py",), False, (0,), write_h5py, read_h5py),
    "safetensors": Peer(("safetensors",), False, (0,), write_safetensors, read_safetensors),
    "arrow": Peer(("pyarrow",), False, (0,), write_arrow, read_arrow),
    "npy mapped": Peer((), False, (0,), write_npy, read_npy),
    "npz files": Peer((), False, (0, 2), write_npz, read_npz),
}
