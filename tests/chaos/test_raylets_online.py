"""A node is lost under a trainer that learns from a stream: it learns what it would have learnt.

Played by `make chaos` alone: on a busy machine the raylets may not start in time.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.chaos.raylet_client import FULL, Raylets, when
from tests.stream_runs import TIMES, results

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

TEACHER = "{kind: noise, levels: [s2], settings: {channels: 4, delay_s: 0.1}}"
STREAM = f"""
name: storm
teacher: {TEACHER}
image: {{size: 16}}
source: {{kind: digits}}
samples: 256
micro_batch: 8
"""
TRAIN = f"""
steps: 120
batch_size: 16
log_every: 2
device: cpu
student: {{name: cifar_resnet, settings: {{depths: [1, 1, 1], widths: [8, 8, 8]}}}}
dreamteacher: {{width: 8}}
data: {{kind: stream, stream: {{name: storm, micro_batch: 8, samples: 256, image: {{size: 16}},
  source: {{kind: digits}}, teacher: {TEACHER}}}}}
"""


def learning(raylets: Raylets, folder: Path, run_dir: str, *words: str) -> subprocess.Popen[bytes]:
    command = ("distill/train.py", "--config", "train.yaml", "--run_dir", run_dir, *words)
    return raylets.start(*command, folder=folder, log="train.txt")


@pytest.mark.skipif(not FULL, reason="three raylets: only in make chaos")
def test_a_node_is_lost_and_another_comes(raylets: Raylets, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(STREAM)
    (tmp_path / "train.yaml").write_text(TRAIN)
    serve = ("pipeline/serve.py", "--config", "serve.yaml", "--actors", "3")
    service = raylets.start(*serve, folder=tmp_path, log="serve.txt")
    metrics = tmp_path / "streamed" / "metrics.jsonl"
    try:
        when(lambda: "dreamshard train" in (tmp_path / "serve.txt").read_text())
        trainer = learning(raylets, tmp_path, "streamed")
        when(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 5)
        before = raylets.actors("StreamActor")
        assert len(before) == 3, "one on each node"
        raylets.tell("kill")
        when(lambda: len(metrics.read_text().splitlines()) >= 20)
        assert len(raylets.actors("StreamActor")) == 2
        raylets.tell("add")
        when(lambda: len(raylets.actors("StreamActor")) == 3)  # Ray brings the third one back
        text = (tmp_path / "train.txt").read_text
        assert trainer.wait(120) == 0, text()
        assert "asked for elsewhere" in text() and "Traceback" not in text()
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)
    when(lambda: not raylets.actors("StreamActor"), timeout_s=30.0)  # none is leaked
    assert learning(raylets, tmp_path, "live", "--data.kind", "live").wait(240) == 0
    but = (*TIMES, "memory_gb")
    assert results(tmp_path / "streamed", but=but) == results(tmp_path / "live", but=but)
