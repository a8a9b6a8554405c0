"""Spectral normalisation, applied to stored weights once instead of at every pass.

Three ways to store it are in use. PyTorch's own keeps both singular vectors and takes no step in
evaluation: sigma = u W v (`weight_orig`, `weight_u`, `weight_v`, or, as a parametrisation,
`parametrizations.weight.original`, `.0._u`, `.0._v`). torch-mimicry's own layers keep u (`sn_u`)
and take one step of power iteration, as BigGAN's (`u0`) and compare_gan's (`u_var`) do.

Source: Miyato et al. 2018, algorithm 1; torch.nn.utils.spectral_norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from dreamshard.errors import TeacherError

_PARAMETRISED = re.compile(r"(?:^|(?<=\.))parametrizations\.(\w+)\.(?:original|0\._([uv]))$")
_NEW_SPELLING = {None: "orig", "u": "u", "v": "v"}
MIMICRY_EPS = 1e-12


def one_step(matrix: Tensor, u: Tensor, *, eps: float, where: str) -> Tensor:
    """Return the spectral norm that one step of power iteration finds.

    Args:
        matrix: (O, I).
        u: O numbers, the stored left singular vector.
        eps: the least length that a vector is divided by.
        where: names the vector in errors.
    """
    if u.numel() != len(matrix):
        raise TeacherError(f"{where}: got {u.numel()} numbers, allowed {len(matrix)}. Damaged?")
    v = F.normalize(u.view(1, -1) @ matrix, eps=eps)
    return (v @ matrix.T).norm()


def stored(matrix: Tensor, u: Tensor, v: Tensor, *, where: str) -> Tensor:
    """Return the spectral norm that stored singular vectors give: u W v.

    Args:
        matrix: (O, I).
        u, v: O and I numbers.
        where: names the weight in errors.
    """
    if (u.numel(), v.numel()) != tuple(matrix.shape):
        raise TeacherError(
            f"{where}: got singular vectors of {u.numel()} and {v.numel()} numbers, allowed "
            f"{len(matrix)} and {matrix.shape[1]}. Damaged?"
        )
    return u.flatten() @ matrix @ v.flatten()


def plain_name(name: str) -> str | None:
    """Return the name that a stored tensor has once its norm is divided out; None for vectors.

    `l5.weight_orig` is `l5.weight`; `l5.weight_u` and `l5.sn_sigma` go.
    """
    name = _old_spelling(name)
    base, _, last = name.rpartition(".")
    if re.fullmatch(r"weight_[uv]|sn_u|sn_sigma", last):
        return None
    return f"{base}.{last}".removesuffix("_orig").removeprefix(".")


def divide(state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Divide weights by their spectral norms, as PyTorch or torch-mimicry stored them.

    Args:
        state: name -> tensor; what is not normalised stays as it is.
        where: names the file in errors.

    Raises: TeacherError for vectors that are missing or do not fit their weight.
    """
    state = {_old_spelling(name): value for name, value in state.items()}
    plain = {}
    for name, value in state.items():
        own = plain_name(name)
        if own is None:
            continue
        base = name.removesuffix("_orig")
        if name != base:
            missing = [f"{base}_{each}" for each in "uv" if f"{base}_{each}" not in state]
            if missing:
                raise TeacherError(f"{where}: {name} without {', '.join(missing)}. Damaged?")
            vectors = (state[f"{base}_{each}"].float() for each in "uv")
            at = f"{where}: {name}"
            value = value.float() / stored(value.float().flatten(1), *vectors, where=at)
        elif (u := f"{name.removesuffix('weight')}sn_u") in state and name.endswith("weight"):
            matrix, at = value.float().flatten(1), f"{where}: {u}"
            value = value.float() / one_step(matrix, state[u].float(), eps=MIMICRY_EPS, where=at)
        plain[own] = value
    return plain


def _old_spelling(name: str) -> str:
    return _PARAMETRISED.sub(lambda match: f"{match[1]}_{_NEW_SPELLING[match[2]]}", name)
