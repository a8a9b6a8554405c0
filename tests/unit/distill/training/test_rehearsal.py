"""What does not fit is said before the first step, and what learns nothing is left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill.configs.methods import VICRegConfig
from distill.configs.train import DreamTeacherConfig, StudentConfig, TrainConfig
from distill.data.open import open_training_set
from distill.methods.base import Method
from distill.methods.build import build_method, method_class
from distill.training.rehearsal import rehearse
from distill.training.start import plan_of
from dreamshard.errors import ConfigError


class Sees(Method):
    """A method that computes with values, which tensors without values do not have."""

    def build(self, *_: object, **__: object) -> None:
        self.idle = nn.Linear(2, 2)

    def forward(self, images: Tensor, targets: object) -> dict[str, Tensor]:
        pooled = self.student.pooled(images)
        return {"loss": pooled.square().mean() if float(pooled.detach().sum()) >= -1e9 else pooled}


class Forgets(Sees):
    """A method that does not train its student."""

    def forward(self, images: Tensor, targets: object) -> dict[str, Tensor]:
        return {"loss": self.idle(torch.ones(2)).sum()}


def rehearsed(config: TrainConfig, *, ranks: int = 1) -> tuple[Method, list[str]]:
    kind, settings = method_class(config.method), config.method_settings()
    training_set = open_training_set(config.data, needs=kind.needs(settings))
    method = build_method(kind, settings, student=config.student, training_set=training_set, seed=0)
    lines = rehearse(method, plan=plan_of(config), training_set=training_set, ranks=ranks)
    return method, lines


def test_it_leaves_weights_statistics_and_random_numbers_alone(configure) -> None:
    config = configure()
    kind = method_class(config.method)
    training_set = open_training_set(config.data, needs=kind.needs(config.dreamteacher))
    method = build_method(
        kind, config.dreamteacher, student=config.student, training_set=training_set, seed=0
    )
    before = {name: value.clone() for name, value in method.state_dict().items()}
    state = torch.get_rng_state()
    assert rehearse(method, plan=plan_of(config), training_set=training_set, ranks=1) == []
    assert torch.equal(state, torch.get_rng_state())
    after = method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None and p.requires_grad for p in method.parameters())


def test_branches_that_no_loss_looks_at_are_frozen_and_named(configure) -> None:
    student = StudentConfig(name="test_vit", strides=[4, 8, 16])
    method, lines = rehearsed(
        configure(method="vicreg", vicreg=VICRegConfig(width=8, hidden=8), student=student)
    )
    frozen = [name for name, p in method.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith("student.neck.branches.") for name in frozen)
    assert f"{len(frozen)} parameters get no gradient" in lines[0]


def test_one_sample_per_forward_pass_is_a_setting(configure) -> None:
    with pytest.raises(ConfigError, match="batch_size: got 4, of which a forward pass sees one"):
        rehearsed(configure(batch_size=4, method="vicreg"), ranks=4)


@pytest.mark.parametrize(
    ("name", "settings"), [("inception_v3", {}), ("halonet_h1", {}), ("resnet10t", {"in_chans": 1})]
)
def test_students_that_do_not_take_the_images_are_refused(configure, name, settings) -> None:
    student = StudentConfig(name=name, settings=settings)
    with pytest.raises(ConfigError, match=r"student\.(name|settings\.in_chans): got"):
        rehearsed(configure(method="vicreg", student=student))


def test_an_untrained_half_is_said_with_what_trains_it(configure) -> None:
    student = StudentConfig(name="resnet10t")
    _, lines = rehearsed(configure(student=student))
    assert "resnet10t's weights are deeper than its maps (stride 2, 4)" in lines[-1]
    assert "--student.strides [2,4,8,16,32] trains it whole" in lines[-1]
    student = StudentConfig(name="resnet10t", strides=[2, 4, 8, 16, 32])
    assert rehearsed(configure(student=student, dreamteacher=DreamTeacherConfig(width=8)))[1] == []


def test_a_method_of_ones_own_is_rehearsed_with_values_where_it_looks_at_them(configure) -> None:
    method, lines = rehearsed(configure(method=f"{__name__}:Sees"))
    assert not any(p.requires_grad for p in method.idle.parameters())  # type: ignore[union-attr]
    assert "idle.weight, idle.bias" in lines[0]
    with pytest.raises(ConfigError, match="whose loss reaches no weight of the student"):
        rehearsed(configure(method=f"{__name__}:Forgets"))
