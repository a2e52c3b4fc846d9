import math

import pytest
import torch

from sance_audio.ledger import Ledger


def test_the_ledger_adds_up_per_component():
    ledger = Ledger()
    h = torch.tensor([[0.1, -2.2], [0.3, -2.0]])  # two samples of each of two components
    ledger.enter(h)
    ledger.enter(h + 1)
    once = h.exp().mean(0).log()
    assert ledger.log_z == pytest.approx((2 * once + 1).tolist(), rel=1e-5)
    assert ledger.mean == pytest.approx(float(2 * once.mean() + 1), rel=1e-5)
    assert ledger.refreshes == 2
    assert ledger.ess > 0.98, "offsets of components are no loss of sample size"
    excess = (1 / ledger.ess - 1) / 2
    assert ledger.standard_error == pytest.approx(math.sqrt(2 * excess / 2))
    assert ledger.bias == pytest.approx([-excess] * 2)
    assert Ledger(**vars(ledger)) == ledger


def test_offsets_do_not_drift_the_ledger():
    """Ratios that average to zero over components leave log Z at zero, however often."""
    ledger = Ledger()
    for _ in range(100):
        ledger.enter(torch.tensor([[0.3, -0.3, 0.0]]))
    assert ledger.mean == pytest.approx(0, abs=1e-5)
