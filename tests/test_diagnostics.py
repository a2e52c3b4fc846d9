import pytest
import torch
from conftest import random_reference

from sance_audio.diagnostics import annealed_log_z
from sance_audio.energy import ReferencedEnergy


class Tilt(torch.nn.Module):
    """F(x | c) = a_c . x: the model is the reference shifted by -C a, with log Z = a C a / 2 -
    a mu.
    """

    def __init__(self, a: torch.Tensor):
        super().__init__()
        self.register_buffer("a", a)

    def forward(self, x, c):
        return (x.flatten(1) * self.a[c]).sum(1)


def test_annealing_finds_a_known_log_z():
    reference = random_reference(dimensions=256)
    a = 0.15 * torch.randn(3, 256, generator=torch.Generator().manual_seed(5))
    energy = ReferencedEnergy(reference, Tilt(a))
    truth = []
    for k in range(3):
        u, lam, s = reference.basis[k], reference.eigenvalues[k], reference.remainder[k]
        cov = u @ torch.diag(lam - s) @ u.T + s * torch.eye(256)
        truth.append(float(0.5 * a[k] @ cov @ a[k] - a[k] @ reference.mean[k]))
    log_z = annealed_log_z(
        energy,
        (16, 16),
        chains=64,
        steps=60,
        settle=20,
        generator=torch.Generator().manual_seed(0),
    )
    for k in range(3):
        error = max(float(log_z.standard_error[k]), 0.02)
        assert float(log_z.forward[k]) == pytest.approx(truth[k], abs=4 * error)
        assert float(log_z.reverse[k]) == pytest.approx(truth[k], abs=6 * error)
    assert log_z.accepted > 0.5


def test_without_a_network_log_z_is_exactly_zero():
    energy = ReferencedEnergy(random_reference(), Tilt(torch.zeros(3, 256)))
    log_z = annealed_log_z(
        energy, (16, 16), chains=4, steps=4, settle=2, generator=torch.Generator().manual_seed(0)
    )
    assert log_z.forward.abs().max() == 0
    assert log_z.reverse.abs().max() == 0
    assert log_z.accepted == 1
    assert log_z.ess.min() == pytest.approx(1)


@pytest.mark.parametrize(("steps", "settle"), [(0, 10), (1, 0), (4, -1)])
def test_chains_that_would_not_move_are_a_mistake(steps, settle):
    energy = ReferencedEnergy(random_reference(), Tilt(torch.zeros(3, 256)))
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=f"found steps={steps}, settle={settle}"):
        annealed_log_z(energy, (16, 16), chains=4, steps=steps, settle=settle, generator=g)
    for steps, settle in ((1, 1), (2, 0)):
        settings = {"chains": 4, "steps": steps, "settle": settle, "generator": g}
        assert annealed_log_z(energy, (16, 16), **settings).accepted == 1
