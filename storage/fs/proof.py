"""Whether a store refuses to put an object where there is one: tried, not believed.

Stores and gateways say they take `If-None-Match` and some ignore it, or refuse every such put, or
stop to honour it when somebody changes a setting. The order of two runs' records hangs on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

from dreamshard.errors import DataError
from dreamshard.owner.processes import owner

Proof = Literal["proved", "ignored", "refuses all", "not offered"]
MEANING: dict[Proof, str] = {
    "proved": "a second put of one key was refused",
    "ignored": "a second put of one key was taken: the store ignores the condition",
    "refuses all": "the store refuses conditional puts even where there is nothing",
    "not offered": "the store, or the package that talks to it, has no conditional put",
}
_counter = itertools.count()


def prove(
    folder: str,
    *,
    create: Callable[[str, bytes], None],
    put: Callable[[str, bytes], None],
    get: Callable[[str], bytes | None],
    remove: Callable[[str], object],
) -> Proof:
    """Put one key twice, on the condition that there is none, and see what happens.

    Args:
        folder: where to put it.
        create: puts an object under a key that has none; raises FileExistsError where there is one,
            NotImplementedError where that cannot be asked for.
        put: puts an object, whatever is there.
        get: returns an object, None where there is none.
        remove: removes it.

    Raises:
        DataError: if the store cannot be reached or written to.
    """
    key = f"{folder}/{owner()}.proof.{next(_counter)}"
    try:
        try:
            create(key, b"first")
        except FileExistsError:
            if get(key) != b"first":  # else the answer was lost, and asking again found it there
                return "refuses all"
        try:
            create(key, b"second")
        except FileExistsError:
            return "proved" if get(key) == b"first" else "ignored"
        return "ignored"
    except (NotImplementedError, TypeError, ValueError):
        return "not offered"
    except DataError:
        put(key, b"plain")  # if that fails, too, the store cannot be reached
        return "not offered"
    finally:
        remove(key)


def explain(url: str, proof: Proof) -> DataError:
    """Return the error that says why a second run may not write."""
    return DataError(
        f"{url}: got a second run at work, allowed one at a time here, because conditional put is "
        f"not proved ({MEANING[proof]}). Wait for the other run, or use a store that honours "
        "If-None-Match."
    )
