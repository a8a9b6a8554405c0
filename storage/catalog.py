"""Find the datasets under a root: all of them, one by name, or the one that serves a recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from dreamshard.owner.urls import split_last
from storage.dataset import Dataset
from storage.fs.local import Files
from storage.fs.open import open_files
from storage.ledger.description import KEY, MAX_BYTES, Description, read_description
from storage.schema import Recipe, covers_levels, source_covers

PrefixDigest = Callable[[int], str]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """Say which dataset serves a recipe, and in what it differs from one made for it.

    Args:
        url: the dataset's folder.
        about: its description.
        same_levels: it records no levels but those wanted.
        same_source: it read the same source, not one that the wanted one grew from.
        same_layout: format, codecs and unit size are the same.
    """

    url: str
    about: Description
    same_levels: bool
    same_source: bool
    same_layout: bool

    @property
    def exact(self) -> bool:
        """Whether the dataset is the one the recipe itself would make."""
        return self.same_levels and self.same_source and self.same_layout

    @property
    def extendable(self) -> bool:
        """Whether making more of its units makes nothing but what is wanted."""
        return self.same_levels and self.same_layout

    def __str__(self) -> str:
        reasons = [] if self.same_levels else ["it records more levels"]
        reasons += [] if self.same_source else ["the source grew since"]
        reasons += [] if self.same_layout else ["it is stored in another layout"]
        return f"{self.url} ({', '.join(reasons) or 'the same recipe'})"


def find(root: str, recipe: Recipe, *, prefix_digest: PrefixDigest | None = None) -> Match | None:
    """Find the dataset under a root that serves a recipe best.

    Args:
        root: folder of datasets.
        recipe: what is wanted.
        prefix_digest: digest of the wanted source's first `count` samples, for datasets made when
            the source was shorter; they match if all else is the same.

    Returns:
        A dataset with the same content, or one that covers it: the same but for more levels, for a
        source that has grown at its end since, or for its layout. The closest one; None if none.
    """
    files = open_files(root)
    exact = _match(files, recipe.folder, recipe, prefix_digest)
    if exact is not None and exact.exact:
        return exact
    matches = [_match(files, name, recipe, prefix_digest) for name in sorted(files.names(""))]
    candidates = [match for match in matches if match is not None]
    return min(
        candidates,
        key=lambda m: (not m.same_levels, not m.same_source, not m.same_layout, m.about.created),
        default=None,
    )


def list_datasets(root: str) -> Iterator[tuple[str, Description | DataError]]:
    """Yield (url, description) of the datasets under a root, or of the one that is the root.

    A damaged description is yielded as the error that says so.

    Raises:
        DataError: if there is no such folder.
    """
    files = open_files(root)
    if files.size(KEY) is not None:
        yield files.url, read_description(files)
        return
    if files.size("") is None:
        raise DataError(f"{files.url}: got no such folder. Check the root the data was written to.")
    for name in sorted(files.names("")):
        inner = open_files(f"{files.url}/{name}")
        try:
            if inner.size(KEY) is not None:
                yield inner.url, read_description(inner)
        except DataError as error:  # it cannot be read, or leads nowhere
            yield inner.url, error


def find_dataset(url: str) -> Dataset:
    """Open a dataset by its folder, or by ROOT/NAME where one dataset under ROOT has that name.

    Raises:
        DataError: if there is none, or several.
    """
    files = open_files(url)
    if files.size(KEY) is not None:
        return Dataset.open(files.url)
    root, name = split_last(files.url)
    folders = {
        "": files.url if files.size("") is not None else "",
        name: root if name else "",
    }
    for wanted, folder in folders.items():
        urls = _named(folder, wanted) if folder else []
        if len(urls) == 1:
            return Dataset.open(urls[0])
        if urls:
            choices = ", ".join(entry.rpartition("/")[2] for entry in urls[:5])
            raise DataError(
                f"{files.url}: got {len(urls)} datasets ({choices}), allowed one. Give the "
                "folder of the one you mean; `dreamshard ls` shows what they are."
            )
    raise DataError(
        f"{files.url}: got no dataset here or of this name, allowed a dataset's folder, or "
        f"ROOT/NAME. `dreamshard ls {root or (files.url if files.remote else '/')}` lists what "
        "there is."
    )


def _named(root: str, name: str) -> list[str]:
    urls = []
    for folder in sorted(open_files(root).names("")):
        stem = folder.rsplit("-", 2)[0]
        if (not name or stem == name) and _is_dataset(open_files(f"{root}/{folder}")):
            urls.append(f"{root}/{folder}")
    return urls


def _is_dataset(files: Files) -> bool:
    """Say whether a folder has a description, as far as that can be seen."""
    try:
        return files.size(KEY) is not None
    except DataError:
        return False


def _match(
    files: Files, folder: str, want: Recipe, prefix_digest: PrefixDigest | None
) -> Match | None:
    """Compare one dataset with a recipe; most are dismissed by their bytes, before any parsing."""
    try:
        data = files.read(f"{folder}/{KEY}", limit=MAX_BYTES)
    except CannotReadError as error:
        if folder == want.folder:
            raise
        log.warning("passed over, though it may hold what is wanted: %s", error)
        return None
    except (OSError, DataError):
        return None
    if want.family_key.encode() not in data:
        return None
    try:
        about = Description.from_json(data, where=files.path(f"{folder}/{KEY}"))
    except DataError:
        return None  # `dreamshard ls` shows it; it can serve nobody
    have = about.recipe
    if have.family_key != want.family_key or not covers_levels(have, want):
        return None
    if not source_covers(have, want, prefix_digest=prefix_digest):
        return None
    return Match(
        url=files.path(folder),
        about=about,
        same_levels=covers_levels(want, have),
        same_source=have.source == want.source,
        same_layout=_layout_of(have, want) == _layout_of(want, want),
    )


def _layout_of(recipe: Recipe, want: Recipe) -> dict[str, object]:
    """Return a recipe's layout as far as it concerns the levels wanted."""
    levels, codecs = want.content.get("levels", []), recipe.layout.get("codecs", {})
    items = levels if isinstance(levels, list) else []
    names = {str(item.get("name")) for item in items if isinstance(item, dict)}
    chosen = {name: codecs.get(name) for name in names} if isinstance(codecs, dict) else {}
    return {**recipe.layout, "codecs": chosen}
