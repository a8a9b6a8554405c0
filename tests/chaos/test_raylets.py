"""Three true raylets: a node, actors and drivers are lost or paused, the bytes stay the same.

Played by `make chaos` alone: on a busy machine the raylets may not start in time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamshard.config import to_yaml
from pipeline.cluster.config import RayConfig
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.request.config import EncodeConfig
from pipeline.teachers.base import TeacherConfig
from storage.dataset import Dataset
from storage.verbs.verify import verify_dataset
from tests.chaos.play import hashes
from tests.chaos.raylet_client import FULL, Raylets, when

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

UNITS, PER_UNIT = 10, 16


def config(folder: Path) -> EncodeConfig:
    teacher = TeacherConfig(kind="noise", levels=["s2"], settings={"channels": 2, "delay_s": 0.1})
    return EncodeConfig(
        teacher=teacher,
        source=SourceConfig(kind="digits"),
        image=ImageConfig(size=8),
        root=str(folder / "data"),
        run_dir=str(folder / "run"),
        samples=UNITS * PER_UNIT,
        samples_per_unit=PER_UNIT,
        micro_batch=4,
        unit_deadline_s=3.0,
        fsync=False,
        ray=RayConfig(auth_mode="token"),
    )


def start(raylets: Raylets, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config(folder)))
    words = ("pipeline/encode.py", "--config", "config.yaml")
    return raylets.start(*words, folder=folder, log="log.txt")


def commits(folder: Path) -> int:
    return sum(1 for _ in (folder / "data").glob("*/commits/0*/*.json"))


@pytest.fixture(scope="module")
def reference(raylets: Raylets, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reference")
    assert start(raylets, folder).wait(120) == 0, (folder / "log.txt").read_text()
    return hashes(folder / "data")


def lose_a_node(raylets: Raylets, folder: Path, driver: subprocess.Popen[bytes]) -> None:
    raylets.tell("kill")


def pause_an_actor(raylets: Raylets, folder: Path, driver: subprocess.Popen[bytes]) -> None:
    """Stop one for good: past its deadline it is replaced."""
    os.kill(raylets.actors("ShardActor")[0], signal.SIGSTOP)


def pause_an_actor_that_wakes(
    raylets: Raylets, folder: Path, driver: subprocess.Popen[bytes]
) -> None:
    victim = raylets.actors("ShardActor")[0]
    os.kill(victim, signal.SIGSTOP)
    time.sleep(4.0)  # its unit was given to another meanwhile
    os.kill(victim, signal.SIGCONT)


def kill_actors(raylets: Raylets, folder: Path, driver: subprocess.Popen[bytes]) -> None:
    for victim in raylets.actors("ShardActor")[:2]:
        os.kill(victim, signal.SIGKILL)


def kill_the_driver(raylets: Raylets, folder: Path, driver: subprocess.Popen[bytes]) -> None:
    driver.kill()


def start_another(raylets: Raylets, folder: Path, driver: subprocess.Popen[bytes]) -> None:
    assert start(raylets, folder).wait(120) == 0


STORMS = [
    *(lose_a_node, pause_an_actor, pause_an_actor_that_wakes),
    *(kill_actors, kill_the_driver, start_another),
]


@pytest.mark.skipif(not FULL, reason="three raylets: only in make chaos")
@pytest.mark.parametrize("storm", STORMS, ids=lambda storm: storm.__name__)
def test_the_bytes_are_the_same(
    storm: Callable[[Raylets, Path, subprocess.Popen[bytes]], None],
    raylets: Raylets,
    reference: dict[str, str],
    tmp_path: Path,
) -> None:
    driver = start(raylets, tmp_path)
    when(lambda: commits(tmp_path) >= 1 and len(raylets.actors("ShardActor")) >= 2)
    storm(raylets, tmp_path, driver)
    code = driver.wait(120)
    text = (tmp_path / "log.txt").read_text()
    assert code == (-signal.SIGKILL if storm is kill_the_driver else 0), text
    if code:
        assert start(raylets, tmp_path).wait(120) == 0
    if storm is pause_an_actor:
        assert "is stuck with it; replacing it" in text and "is late: " in text
    when(lambda: not raylets.actors("ShardActor"), timeout_s=30.0)  # none is leaked
    assert hashes(tmp_path / "data") == reference
    (folder,) = (tmp_path / "data").iterdir()
    dataset = Dataset.open(str(folder))
    assert dataset.snapshot().num_samples == UNITS * PER_UNIT and not dataset.snapshot().holes
    report = verify_dataset(dataset)
    assert not report.findings and not report.missing and not report.notes
    if storm is lose_a_node:
        raylets.tell("add")
