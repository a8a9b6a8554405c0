"""Count what listing and reading a source costs: bytes from S3, seconds for a million local files.

    python benchmarks/sources.py                     both
    python benchmarks/sources.py --files 0           only what is fetched
    python benchmarks/sources.py --remote_images 0   only the identity of local files

Remote: a tar file and a Parquet file of random "images" of photographs' size on an S3 server on
loopback; every byte it sends is counted: for the listing, for a second listing, and for one epoch
in random order, in batches. Bound: 0.02 of the file for a listing, 1.1 times the bytes used for an
epoch. Local: small files in class folders; identity (listing, evidence of content, labels) the
first time and again; bound 60 s for a million. The last line is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.images.source import ImageSource, SourceConfig, fingerprint, open_source
from tests.s3_server import Proxy, serve_s3

MEAN_BYTES = 110_000  # of an ImageNet JPEG
BATCH = 64
ROWS_PER_GROUP = 30


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1_000_000, help="local files (count)")
    parser.add_argument("--remote_images", type=int, default=300, help="images on S3 (count)")
    asked = parser.parse_args()
    result: dict[str, object] = {"benchmark": "sources"}
    with tempfile.TemporaryDirectory(prefix="dreamshard-sources-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        os.environ["DREAMSHARD_CACHE"] = f"{folder}/cache/chunks"
        if asked.remote_images:
            result["remote"] = remote(asked.remote_images)
        if asked.files:
            result["local"] = local(Path(folder) / "images", asked.files)
    print(json.dumps(result))


def remote(count: int) -> dict[str, object]:
    """Return counted bytes, as shares of the file and of what is used, for tar and Parquet."""
    numbers = np.random.default_rng(0)
    sizes = numbers.integers(MEAN_BYTES // 2, MEAN_BYTES * 3 // 2, count)
    images = [numbers.bytes(int(size)) for size in sizes]
    order = np.random.default_rng(1).permutation(count)
    with bucket() as (proxy, write):
        found = {}
        for name, data in (("images.tar", as_tar(images)), ("images.parquet", as_parquet(images))):
            write(name, data)
            kind = "webdataset" if name.endswith(".tar") else "parquet"
            config = SourceConfig(kind=kind, path=f"s3://bench/{name}")
            source, listed = counted(proxy, lambda c=config: identified(c))
            _, again = counted(proxy, lambda c=config: identified(c))
            _, read = counted(proxy, lambda s=source: epoch(s, order, images))
            found[kind] = {
                "file_bytes": len(data),
                "listing_share": round(listed / len(data), 4),
                "second_listing_share": round(again / len(data), 4),
                "epoch_bytes_over_used": round(read / int(sizes.sum()), 3),
            }
    return found


def identified(config: SourceConfig) -> ImageSource:
    """List a source and digest its identity."""
    source = open_source(config)
    fingerprint(source)
    return source


def epoch(source: ImageSource, order: np.ndarray, images: list[bytes]) -> None:
    """Read every image once, in random order, and compare it."""
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH].tolist()
        for row, record in zip(rows, source.read(rows), strict=True):
            assert bytes(record.data) == images[row], row  # type: ignore[arg-type]


def counted(proxy: Proxy, call):
    """Return what a call returns, and how many bytes it fetched."""
    before = proxy.body_bytes
    result = call()
    return result, proxy.body_bytes - before


@contextmanager
def bucket() -> Iterator[tuple[Proxy, object]]:
    """Serve an empty bucket; yield the counting server and what puts an object into it."""
    import fsspec

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with serve_s3() as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        filesystem = fsspec.filesystem("s3")
        filesystem.mkdir("bench")
        yield proxy, lambda name, data: filesystem.pipe_file(f"bench/{name}", data)


def as_tar(images: list[bytes]) -> bytes:
    """Return a tar file of images, their labels beside them."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number, image in enumerate(images):
            for ending, data in (("jpg", image), ("cls", str(number % 10).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def as_parquet(images: list[bytes]) -> bytes:
    """Return a Parquet file of images and labels."""
    sink = io.BytesIO()
    labels = [number % 10 for number in range(len(images))]
    keys = [f"{number:06d}" for number in range(len(images))]
    table = pa.table({"key": keys, "image": pa.array(images, pa.binary()), "label": labels})
    pq.write_table(table, sink, row_group_size=ROWS_PER_GROUP, compression="none")
    return sink.getvalue()


def local(folder: Path, count: int) -> dict[str, object]:
    """Return seconds for the identity of local files, first and again."""
    per_folder = 1000
    for number in range(count):
        if number % per_folder == 0:
            place = folder / f"class{number // per_folder:04d}"
            place.mkdir(parents=True)
        with open(place / f"{number:07d}.jpg", "wb") as file:
            file.write(number.to_bytes(8, "little") * 64)
    config = SourceConfig(kind="folder", path=str(folder))
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        identified(config)
        seconds.append(round(time.perf_counter() - began, 1))
    return {"files": count, "first_s": seconds[0], "again_s": seconds[1]}


if __name__ == "__main__":
    main()
