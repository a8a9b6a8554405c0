"""The three protocols of the linear probe, and the frozen one against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.bench.bench import SUBJECT, UNTRAINED
from distill.configs.tasks import (
    BigBiGanProbeConfig,
    CompressProbeConfig,
    FrozenProbeConfig,
    LinearProbeConfig,
    SgdProbeConfig,
    SimSiamProbeConfig,
)
from distill.probes.frozen import SMALL_GRADIENT, fit_logistic, frozen_probe
from distill.tasks.linear_epochs import Standard, compress, lars, squeeze_and_span
from distill.tasks.linear_probe import LinearProbe, Sweep
from tests.unit.distill.tasks.shape_bench import ShapeBench


def blobs(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]], np.float32)
    return centres[labels] + rng.standard_normal((count, 4)).astype(np.float32), labels


def test_l_bfgs_finds_scikit_learns_solution() -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = blobs(200)
    penalty = 0.01
    ours = fit_logistic(
        torch.from_numpy(features),
        torch.from_numpy(labels),
        penalty=penalty,
        num_classes=3,
        iterations=500,
    ).numpy()
    # scikit-learn minimises C * sum + ||W||^2 / 2: C = 1 / (N * penalty).
    theirs = LogisticRegression(C=1 / (200 * penalty), tol=1e-8, max_iter=2000)
    theirs.fit(features, labels)
    np.testing.assert_allclose(ours[:-1], theirs.coef_.T, atol=2e-3)


def test_the_penalty_is_chosen_on_training_images_alone() -> None:
    train, labels = blobs(150)
    heldout, truth = blobs(300, seed=1)
    rng = np.random.default_rng(50)
    noise = rng.standard_normal((450, 60)).astype(np.float32)
    # A weak penalty learns noise, and the labels that are wrong, by heart.
    labels = np.where(rng.random(150) < 0.3, rng.integers(0, 3, 150), labels)
    train, heldout = np.hstack([train, noise[:150]]), np.hstack([heldout, noise[150:]])
    found = frozen_probe(
        train,
        labels,
        heldout,
        truth,
        penalties=[1e-8, 0.3],
        selection=0.4,
        iterations=200,
        seed=0,
    )
    assert found.penalty == 0.3 and found.accuracy > 60
    assert set(found.selection) == {"standardised", "centred"}
    assert set(found.selection["centred"]) == {1e-8, 0.3}


def test_the_frozen_probe_takes_the_scaling_that_training_images_choose() -> None:
    train, labels = blobs(300)
    heldout, truth = blobs(300, seed=1)
    rng = np.random.default_rng(0)
    for noise, better in ((1e3, "standardised"), (1e-2, "centred")):
        parts = [noise * rng.standard_normal((300, 80)).astype(np.float32) for _ in range(2)]
        found = frozen_probe(
            np.hstack([train, parts[0]]),
            labels,
            np.hstack([heldout, parts[1]]),
            truth,
            penalties=[1e-3, 1e-2],
            selection=0.4,
            iterations=100,
            seed=0,
        )
        assert found.scaling == better and found.accuracy > 55


def test_a_last_fit_that_its_steps_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    (train, labels), (heldout, truth) = blobs(150), blobs(300, seed=1)
    gradients = []
    for iterations in (1, 200):
        found = frozen_probe(
            train, labels, heldout, truth,
            penalties=[1e-4], selection=0.4, iterations=iterations, seed=0,
        )  # fmt: skip
        gradients.append(found.gradient)
    assert gradients[0] > SMALL_GRADIENT > gradients[1]
    (told,) = caplog.messages
    assert "no end after 1 steps (150 samples of 4 features" in told and "iterations" in told


def test_every_protocol_fills_its_columns(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    config = LinearProbeConfig(
        protocols=["lbfgs", "simsiam", "bigbigan"],
        lbfgs=FrozenProbeConfig(penalties=[1e-2, 1e-1], iterations=30),
        simsiam=SimSiamProbeConfig(epochs=4, batch_size=16, lr=10.0),
        bigbigan=BigBiGanProbeConfig(steps=20, batch_size=16, ema=0.9),
    )
    task, reports = LinearProbe(config, seed=0), []
    result = task.run(bench, report=lambda: reports.append(1))
    assert len(reports) == task.count(bench)
    rows = result["rows"]
    assert set(rows["pixels"]) == {"lbfgs"}
    assert set(rows[UNTRAINED]) == set(rows[SUBJECT])
    assert set(rows[SUBJECT]) == {"lbfgs", "simsiam", "bigbigan", "bigbigan_crelu"}
    # The same network under both names: the same figures, from the same seed.
    assert rows[UNTRAINED]["bigbigan"] == rows[SUBJECT]["bigbigan"]
    assert rows[SUBJECT]["simsiam"]["steps"] == 12
    (table,) = task.tables(result)
    assert len(table.header) == 5 and table.lines[0][2:] == ["", "", ""]


def test_a_sweep_starts_at_zero_averages_and_chooses() -> None:
    features, labels = map(torch.from_numpy, blobs(300))
    sweep = Sweep(4, 3, lrs=[1e-6, 0.1], ema=0.5, crelu=False)
    for _ in range(40):
        sweep.step(features, labels)
    slow, fast = sweep.accuracies(features, labels)
    assert fast > 85 and not torch.equal(sweep.averages[1], sweep.weights[1].detach())
    assert float(sweep.averages[0].abs().max()) < 1e-4, "from zero, at a tiny rate"
    assert slow <= fast


def test_crelu_doubles_the_features() -> None:
    sweep = Sweep(4, 3, lrs=[0.1], ema=0.9, crelu=True)
    assert sweep.weights[0].shape == (9, 3)
    inputs = sweep._inputs(torch.from_numpy(blobs(50)[0]))
    assert inputs.shape == (50, 8) and bool((inputs >= 0).all())
    assert bool(((inputs[:, :4] == 0) | (inputs[:, 4:] == 0)).all())


def test_nothing_to_choose_from_is_refused() -> None:
    config = LinearProbeConfig(protocols=[], bigbigan=BigBiGanProbeConfig(lrs=[]))
    assert [problem.key for problem in config.problems()] == ["protocols", "bigbigan.lrs"]


def test_the_rate_follows_every_weights_own_size() -> None:
    """LARS: the first step has length lr x 0.001 x |w|, whatever the gradient's size."""
    for scale in (1e-3, 1e3):
        layer = torch.nn.Linear(4, 3)
        with torch.no_grad():
            layer.bias.zero_()
        before = layer.weight.detach().clone()
        optimizer = lars(layer, lr=2.0, momentum=0.9)
        (scale * layer(torch.ones(2, 4)).square().sum()).backward()
        gradient = layer.bias.grad
        assert gradient is not None
        moved_bias = -2.0 * gradient.clone()
        optimizer.step()
        moved = float((layer.weight.detach() - before).norm())
        assert moved == pytest.approx(2.0 * 0.001 * float(before.norm()), rel=1e-3)
        assert torch.allclose(layer.bias.detach(), moved_bias), "a weight of 0 takes plain steps"


def test_standardised_features_are_compresss() -> None:
    """(3, 4) and (5, 12) lie at (.6, .8) and (5/13, 12/13): deviations of half the differences."""
    known = torch.tensor([[3.0, 4.0], [5.0, 12.0]])
    apart = np.array([0.6 - 5 / 13, 0.8 - 12 / 13])
    expected = (apart / 2) / np.sqrt((apart / 2) ** 2 + 1e-5)
    found = Standard(known)(7 * known)
    np.testing.assert_allclose(found.numpy(), [expected, -expected], rtol=1e-4)


def test_rates_are_the_papers() -> None:
    recipe = squeeze_and_span(SgdProbeConfig(), 50_000)
    (group,) = recipe.build(torch.nn.Linear(2, 2)).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (30.0, 0.9, 0)
    assert [recipe.rate(epoch) for epoch in (0, 45)] == pytest.approx([1.0, 0.5])
    small = squeeze_and_span(SgdProbeConfig(), 128)
    assert small.build(torch.nn.Linear(2, 2)).param_groups[0]["lr"] == 15.0
    recipe = compress(CompressProbeConfig(), 50_000)
    (group,) = recipe.build(torch.nn.Linear(2, 2)).param_groups
    assert (group["lr"], group["weight_decay"], recipe.batch_size) == (0.01, 1e-4, 256)
    rates = [recipe.rate(epoch) for epoch in (14, 15, 29, 30)]
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_the_best_epoch_is_told_beside_the_last(tmp_path: Path) -> None:
    config = LinearProbeConfig(
        protocols=["squeeze_and_span", "compress"],
        squeeze_and_span=SgdProbeConfig(epochs=4, batch_size=16, look_every=3),
        compress=CompressProbeConfig(epochs=3, batch_size=16, drops=[2], lr=0.1, look_every=0),
    )
    task = LinearProbe(config, seed=0)
    bench = ShapeBench(tmp_path)
    result = task.run(bench)
    row = result["rows"][SUBJECT]
    assert row["squeeze_and_span"]["steps"] == 12 and row["compress"]["steps"] == 9
    best = row["squeeze_and_span"]["best"]
    assert best["epoch"] in (3, 4) and best["mean"] >= row["squeeze_and_span"]["mean"]
    assert "best" not in row["compress"] and task.count(bench) == 4
    assert "(" in task.tables(result)[0].lines[0][1]
    (problem,) = CompressProbeConfig(epochs=20).problems()
    assert (problem.key, problem.got) == ("drops", "[15, 30]")
