"""What becomes of a column of labels."""

from __future__ import annotations

import pytest

from dreamshard.errors import ConfigError
from pipeline.images.labels import Labels, read_labels


def read(*values: object) -> Labels:
    return read_labels(values, where="column label", way_out="--source.label_column ''")


def test_numbers_are_taken_as_they_are() -> None:
    assert read(3, 1.0, "2", b"-1", True, None, float("nan"), "").numbers.tolist() == [
        3, 1, 2, -1, 1, -1, -1, -1,
    ]  # fmt: skip


def test_texts_become_classes_with_a_table() -> None:
    labels = read("dog", "cat", None, b"dog")
    assert labels.classes == ("cat", "dog") and labels.numbers.tolist() == [1, 0, -1, 1]
    assert labels.digest != read("dog", "cow", None, "dog").digest
    assert labels.digest == read("dog", "cat", "", "dog").digest


def test_one_bad_value_costs_its_own_sample() -> None:
    labels = read(1, "--3", 10**23, 2)
    assert labels.numbers.tolist() == [1, -1, -1, 2] and not labels.classes
    assert "'--3' is no number" in labels.errors[1] and "beyond 64 bits" in labels.errors[2]


@pytest.mark.parametrize("value", [0.5, [1], {"a": 1}, 1j])
def test_what_no_class_can_be_made_of_is_refused_with_the_way_out(value: object) -> None:
    with pytest.raises(ConfigError, match=r"source.label_column.*column label.*label_column ''"):
        read(0, value)


def test_texts_lose_the_blanks_around_them() -> None:
    labels = read("cat ", "cat", " ", "\ndog", b"\xef\xbb\xbfdog")
    assert labels.classes == ("cat", "dog") and labels.numbers.tolist() == [0, 0, -1, 1, 1]


def test_only_plain_digits_are_numbers() -> None:
    labels = read("1_0", "1_1", "2_0")  # Python's own rule takes them for 10, 11, 20
    assert labels.classes == ("1_0", "1_1", "2_0")
    with pytest.raises(ConfigError, match="'01' and '1', which are one number"):
        read("01", "1", "2")
