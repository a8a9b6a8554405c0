"""The linear probe and the few-label table."""

from __future__ import annotations

import numpy as np
import pytest

from distill.bench.bench import Features
from distill.tasks.few_label import FewLabel, FewLabelConfig, accuracy_table, gain_table
from distill.tasks.probe import choose_strength, label_draws, probe_accuracy, standardise
from dreamshard.errors import DataError

LABELS = np.arange(90) % 3


def clusters(seed: int, *, spread: float, labels: np.ndarray = LABELS) -> np.ndarray:
    """Return 8 features: a corner of a cube per class plus noise."""
    rng = np.random.default_rng(seed)
    centres = np.eye(8)[:3] * 4
    return (centres[labels] + spread * rng.standard_normal((len(labels), 8))).astype(np.float32)


def test_standardised_features_have_unit_size_whatever_their_scale_and_number() -> None:
    features = np.random.default_rng(0).standard_normal((200, 50)) * 7 + 3
    (ours,) = standardise(features, features)
    np.testing.assert_allclose(ours.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose((ours**2).sum(axis=1).mean(), 1, rtol=1e-4)
    (scaled,) = standardise(features * 100 + 5, features * 100 + 5)
    np.testing.assert_allclose(ours, scaled, atol=1e-4)


def test_other_features_get_the_references_statistics() -> None:
    reference, other = np.array([[0.0], [2.0]]), np.array([[5.0]])
    assert standardise(reference, other)[0].tolist() == [[4.0]]


def test_constant_and_nearly_constant_features_stay_small() -> None:
    features = np.random.default_rng(0).standard_normal((100, 3))
    features[:, 1] = 4.0
    features[:, 2] = 1e-9 * features[:, 2]
    (ours,) = standardise(features, features)
    assert np.abs(ours[:, 1]).max() == 0 and np.abs(ours[:, 2]).max() < 1e-5
    assert not standardise(np.ones((3, 2)), np.ones((3, 2)))[0].any()


def test_draws_have_the_labels_asked_for_and_repeat() -> None:
    draws = label_draws(LABELS, shots=5, draws=4, seed=0, purpose="few-label")
    assert draws.shape == (4, 15)
    for row in draws:
        assert len(set(row.tolist())) == 15
        assert np.bincount(LABELS[row]).tolist() == [5, 5, 5]
    again = label_draws(LABELS, shots=5, draws=2, seed=0, purpose="few-label")
    assert np.array_equal(draws[:2], again), "a draw does not depend on how many there are"
    for changes in ({"seed": 1}, {"purpose": "probe-selection"}):
        other = label_draws(
            LABELS, **({"shots": 5, "draws": 4, "seed": 0, "purpose": "few-label"} | changes)
        )
        assert not np.array_equal(draws, other)


def test_separable_classes_are_told_apart() -> None:
    features = clusters(0, spread=0.1)
    accuracy = probe_accuracy(features, LABELS, features, LABELS, strength=10.0)
    assert accuracy == 1.0


def test_the_strength_is_chosen_by_its_accuracy_on_training_samples() -> None:
    (features,) = standardise(clusters(0, spread=2.0), clusters(0, spread=2.0))
    strengths = [1e-9, 1.0, 100.0]
    chosen = choose_strength(features, LABELS, shots=5, strengths=strengths, draws=3, seed=0)
    draws = label_draws(LABELS, shots=5, draws=3, seed=0, purpose="probe-selection")
    means = []
    for strength in strengths:
        scores = []
        for picked in draws:
            rest = np.setdiff1d(np.arange(90), picked)
            scores.append(
                probe_accuracy(
                    features[picked],
                    LABELS[picked],
                    features[rest],
                    LABELS[rest],
                    strength=strength,
                )
            )
        means.append(np.mean(scores))
    assert chosen == strengths[int(np.argmax(means))]


def test_of_equal_strengths_the_stronger_penalty_is_taken() -> None:
    features = clusters(0, spread=0.01)
    chosen = choose_strength(
        features, LABELS, shots=5, strengths=[100.0, 10.0, 1000.0], draws=2, seed=0
    )
    assert chosen == 10.0


@pytest.fixture(scope="module")
def result() -> dict:
    good = Features(clusters(0, spread=0.5), clusters(1, spread=0.5))
    poor = Features(clusters(2, spread=6.0), clusters(3, spread=6.0))
    task = FewLabel(FewLabelConfig(shots=[1, 5], draws=4, selection_draws=2), seed=0)
    reports: list[int] = []
    found = task.judge(
        {"poor": poor, "same": good, "good": good},
        train_labels=LABELS,
        heldout_labels=LABELS,
        report=lambda: reports.append(1),
    )
    assert len(reports) == 3 * 2
    return found


def test_rows_have_one_accuracy_per_draw(result: dict) -> None:
    assert list(result["rows"]) == ["poor", "same", "good"]
    for cells in result["rows"].values():
        assert list(cells) == ["1", "5"]
        for cell in cells.values():
            assert len(cell["accuracy"]) == 4
            assert cell["mean"] == pytest.approx(np.mean(cell["accuracy"]))
            assert cell["std"] == pytest.approx(np.std(cell["accuracy"], ddof=1))
            assert cell["strength"] in (1.0, 10.0, 100.0, 1000.0)


def test_gains_are_paired_by_draw(result: dict) -> None:
    assert result["subject"] == "good"
    assert list(result["paired"]) == ["poor", "same"]
    same = result["paired"]["same"]["5"]
    assert (same["wins"], same["ties"], same["losses"]) == (0, 4, 0) and same["mean"] == 0
    gain = result["paired"]["poor"]["1"]
    expected = np.subtract(
        result["rows"]["good"]["1"]["accuracy"], result["rows"]["poor"]["1"]["accuracy"]
    )
    assert gain["mean"] == pytest.approx(expected.mean()) and gain["wins"] == 4


def test_tables_show_means_and_gains(result: dict) -> None:
    header, lines = accuracy_table(result)
    assert header == ["representation", "1 label/class", "5 labels/class"]
    assert [line[0] for line in lines] == ["poor", "same", "good"] and "±" in lines[0][1]
    header, lines = gain_table(result)
    assert header == ["good", "1 label", "5 labels"]
    assert lines[1] == ["over same", "+0.0 (0/4)", "+0.0 (0/4)"]


def test_too_few_images_of_a_class_are_named() -> None:
    both = Features(clusters(0, spread=1.0), clusters(1, spread=1.0))
    task = FewLabel(FewLabelConfig(shots=[30]), seed=0)
    with pytest.raises(DataError, match=r"few_label\.shots: got 30, allowed fewer than the 30"):
        task.judge({"a": both}, train_labels=LABELS, heldout_labels=LABELS)


def test_held_out_classes_that_were_never_seen_are_named() -> None:
    both = Features(clusters(0, spread=1.0), clusters(1, spread=1.0))
    task = FewLabel(FewLabelConfig(shots=[1]), seed=0)
    with pytest.raises(DataError, match=r"\[7\]"):
        task.judge({"a": both}, train_labels=LABELS, heldout_labels=np.full(90, 7))
