from pathlib import Path

import pytest

from dreamshard.errors import DataError
from storage.catalog import find, find_dataset, list_datasets
from storage.schema import Recipe
from tests.feature_store import LEVELS, make_dataset, make_recipe


def prefix(count: int) -> str:
    return f"digest-{count}"


def test_the_exact_recipe_is_found(tmp_path: Path) -> None:
    assert find(str(tmp_path / "none"), make_recipe()) is None
    dataset = make_dataset(tmp_path)
    match = find(str(tmp_path), make_recipe())
    assert match is not None and match.exact and match.extendable
    assert match.url == dataset.url and "the same recipe" in str(match)
    assert find(str(tmp_path), make_recipe(seed=1)) is None


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    match = find(str(tmp_path), make_recipe(name="other"))
    assert match is not None and match.url == dataset.url and match.exact


def test_more_levels_cover_fewer(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    match = find(str(tmp_path), make_recipe(levels=LEVELS[:1]))
    assert match is not None and match.url == dataset.url
    assert not match.exact and not match.extendable and match.same_source and match.same_layout
    assert "more levels" in str(match)
    few = make_dataset(tmp_path / "b", recipe=make_recipe(levels=LEVELS[:1]), levels=LEVELS[:1])
    assert find(str(tmp_path / "b"), make_recipe()) is None
    assert few.url


def test_the_closest_is_taken(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    few = make_dataset(tmp_path, recipe=make_recipe(levels=LEVELS[:1]), levels=LEVELS[:1])
    match = find(str(tmp_path), make_recipe(levels=LEVELS[:1], name="x"))
    assert match is not None and match.url == few.url and match.exact


def test_a_source_that_grew_matches_as_a_prefix(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, recipe=make_recipe(count=20))
    wanted = make_recipe(count=30)
    assert find(str(tmp_path), wanted) is None
    assert find(str(tmp_path), wanted, prefix_digest=lambda count: "other") is None
    match = find(str(tmp_path), wanted, prefix_digest=prefix)
    assert match is not None and match.url == dataset.url
    assert not match.exact and match.extendable and not match.same_source
    assert "grew" in str(match)
    assert find(str(tmp_path), make_recipe(count=10), prefix_digest=prefix) is None


def test_another_layout_serves_the_same_content(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    for other in (make_recipe(unit=8), make_recipe(codec="float32")):
        match = find(str(tmp_path), other)
        assert match is not None and match.url == dataset.url
        assert not match.same_layout and not match.extendable


def test_damaged_neighbours_do_not_disturb(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    key = dataset.recipe.family_key
    for name, text in (("a", ""), ("b", "{}"), ("c", f'{{"x": "{key}"'), ("d", key)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    match = find(str(tmp_path), make_recipe(name="other"))
    assert match is not None and match.url == dataset.url


def test_listing(tmp_path: Path) -> None:
    first = make_dataset(tmp_path)
    second = make_dataset(tmp_path, recipe=make_recipe(seed=1))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "dataset.json").write_text("{")
    found = dict(list_datasets(str(tmp_path)))
    assert set(found) == {first.url, second.url, str(tmp_path / "damaged")}
    assert isinstance(found[str(tmp_path / "damaged")], DataError)
    assert [url for url, _ in list_datasets(first.url)] == [first.url]
    with pytest.raises(DataError, match="no such folder"):
        list(list_datasets(str(tmp_path / "none")))


def test_datasets_by_folder_and_name(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    for url in (dataset.url, f"{tmp_path}/noise-test", str(tmp_path), f"{dataset.url}/"):
        assert find_dataset(url).url == dataset.url
    make_dataset(tmp_path, recipe=make_recipe(seed=1))
    with pytest.raises(DataError, match="got 2 datasets"):
        find_dataset(f"{tmp_path}/noise-test")
    with pytest.raises(DataError, match="got no dataset here or of this name"):
        find_dataset(f"{tmp_path}/noise")
    with pytest.raises(DataError, match="got no dataset"):
        find_dataset(f"{tmp_path}/none/there")


@pytest.mark.parametrize("url", ["memory://bucket", "memory://bucket/"])
def test_a_bucket_alone_has_no_folder_above(url: str) -> None:
    with pytest.raises(DataError) as error:
        find_dataset(url)
    assert str(error.value).startswith("memory://bucket: got no dataset here")
    assert "`dreamshard ls memory://bucket` lists" in str(error.value)


@pytest.mark.parametrize("url", ["s3://", "gs:///"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(
        DataError, match=f"^{url}: got no bucket, allowed {url[:2]}://BUCKET/FOLDER"
    ):
        find_dataset(url)


def test_recipes_that_say_little_are_compared_all_the_same(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    assert find(str(tmp_path), Recipe("a", {}, {"samples_per_unit": 8})) is None
