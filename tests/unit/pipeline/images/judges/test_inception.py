"""Inception against torchvision's modules with TensorFlow's pooling, in its file's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception

from dreamshard.errors import ConfigError
from pipeline.images import quality
from pipeline.images.judges.inception import CLASSES, SIDE, Inception, resized
from pipeline.learning.pretraining.watch import ProxyDistance


class Pooling:
    """What torchvision's blocks call, with the published network's averages."""

    last = False

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)

    def avg_pool2d(self, x: Tensor, **told: Any) -> Tensor:
        if self.last:
            return F.max_pool2d(x, **told)
        return F.avg_pool2d(x, **told, count_include_pad=False)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    network = inception.Inception3(CLASSES, aux_logits=False, init_weights=False).eval()
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            nn.init.uniform_(part.bias, -0.1, 0.1)
    file = tmp_path_factory.mktemp("weights") / "weights-inception-2015-12-05-6726825d.pth"
    state = network.state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("_tracked")}, file)
    return network, file


def test_features_and_logits_are_the_published_network_s(
    reference: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = reference
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    pooling, seen = Pooling(), []
    monkeypatch.setattr(inception, "F", pooling)
    block: Any = network.Mixed_7c
    block.register_forward_pre_hook(lambda *_: setattr(pooling, "last", True))
    network.avgpool.register_forward_hook(lambda *told: seen.append(told[2].flatten(1)))
    with torch.inference_mode():
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 128
        logits = network(x) - network.fc.bias
    ours = Inception(file)
    features = ours(images)
    assert features.std() > 0.01
    np.testing.assert_allclose(features, seen[0], rtol=1e-3, atol=1e-4 * np.abs(features).max())
    np.testing.assert_allclose(ours.logits(features), logits, rtol=1e-3, atol=1e-3)


def test_images_are_brought_to_size_as_tensorflow_1_did() -> None:
    x = torch.tensor([[10.0, 20.0], [30.0, 50.0]])[None, None]
    found = resized(x, 4)[0, 0]
    assert found[0].tolist() == [10, 15, 20, 20], "no half pixels; the edge is repeated"
    assert found[:, 0].tolist() == [10, 20, 30, 30] and found[1, 1] == 27.5
    assert torch.equal(resized(x, 2), x)


def test_a_score_by_hand() -> None:
    sure = np.log(np.array([[1.0, 1e-30], [1e-30, 1.0]]))
    assert quality.inception_score(sure)[0] == pytest.approx(2)
    assert quality.inception_score(np.zeros((4, 7)))[0] == pytest.approx(1)
    told = np.log(np.array([[0.75, 0.25], [0.25, 0.75]])) + np.array([[3.0], [-5.0]])
    hand = np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert quality.inception_score(told)[0] == pytest.approx(hand)
    mean, spread = quality.inception_score(np.concatenate([told, sure]), parts=2)
    assert mean == pytest.approx((hand + 2) / 2) and spread == pytest.approx((2 - hand) / 2)


def test_distances_and_the_score_of_samples(reference: tuple[Any, Path]) -> None:
    extract = quality.open_extractor(f"inception:{reference[1]}")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    found = ProxyDistance(extract, images).measure(lambda numbers: images[numbers] // 2)
    assert found["proxy_fd"] > 0 and 1 <= found["inception_score"] <= 3
    plain = ProxyDistance(quality.pixel_features, images).measure(lambda numbers: images[numbers])
    assert plain["proxy_fd"] == pytest.approx(0, abs=1e-6) and "inception_score" not in plain


def test_other_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"extractor: got inception:.*not found"):
        quality.open_extractor(f"inception:{tmp_path / 'none.pth'}")
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"distance_extractor: got .*do not fit the architecture"):
        quality.open_extractor(f"inception:{tmp_path / 'other.pth'}", key="distance_extractor")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"extractor: got inception:"):
        quality.open_extractor(f"inception:{tmp_path / 'bad.pth'}")
