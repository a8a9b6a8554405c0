"""Features are brought to one size, feature by feature or all by one number."""

from __future__ import annotations

import numpy as np

from distill.probes.scaling import centre, mark, scaled, standardise


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


def test_centred_features_keep_their_proportions_and_have_unit_size() -> None:
    features = np.random.default_rng(0).standard_normal((200, 3)) * [1.0, 10.0, 0.1] + [3, 0, 7]
    (ours,) = centre(features, features)
    np.testing.assert_allclose(ours.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose((ours**2).sum(axis=1).mean(), 1, rtol=1e-4)
    ratio = features.std(axis=0)[1] / features.std(axis=0)[2]
    np.testing.assert_allclose(ours.std(axis=0)[1] / ours.std(axis=0)[2], ratio, rtol=1e-4)
    assert centre(np.array([[0.0], [2.0]]), np.array([[5.0]]))[0].tolist() == [[4.0]]
    assert not centre(np.ones((3, 2)), np.ones((3, 2)))[0].any()


def test_raw_features_are_left_alone_and_tables_say_which() -> None:
    features = np.array([[1.0, 5.0], [3.0, 9.0]])
    assert scaled("raw", features, features)[0].tolist() == features.tolist()
    assert mark({"scaling": "centred"}) == " c" and mark({"mean": 3.0}) == ""
