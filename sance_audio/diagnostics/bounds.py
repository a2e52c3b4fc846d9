r"""What annealed importance sampling may say of log Z, and no more.

With w the weights of n chains annealed from a normalised base to `exp(-E)`, E[w] = Z. So
`Zhat = mean w` is unbiased, and by Markov's inequality, for any weights, however bad,

    P(log Zhat >= log Z + b) <= exp(-b)

Backwards from exact samples of the model E[w] = 1 / Z, which bounds log Z from above in the same
way. Without such samples nothing does: chains that have all missed a mode agree perfectly with
each other, and a chain run backwards from their ends agrees with them too.

References:
    Annealed importance sampling (Neal, 2001)
    Sandwiching the marginal likelihood using bidirectional Monte Carlo
        (Grosse, Ghahramani & Adams, 2015)
"""

from __future__ import annotations

__all__ = ["AnnealedLogZ"]

import math
from dataclasses import dataclass

from torch import Tensor

from sance_audio.divergences import effective_sample_size
from sance_audio.ledger import TOO_FEW, log_mean_exp


@dataclass(frozen=True, eq=False)
class AnnealedLogZ:
    """An estimate of log Z = log int exp(-E), in nats, with the bounds that hold.

    **Only `lower_bound` holds whatever the chains did.** `log_z`, `standard_error` and `ess`
    describe the chains there are: if these have not visited every mode of the model, all three
    may look perfect while log Z lies far above. An upper bound takes exact samples of the model.
    """

    log_weight: Tensor
    """`(chains,)`: log w of the chains annealed from the base."""
    accepted: float
    """Mean acceptance of the transitions; NaN where there were none."""
    reverse_log_weight: Tensor | None = None
    """`(n,)`: log w of the chains annealed to the base, from exact samples of the model."""

    @property
    def log_z(self) -> float:
        """log of the mean weight. Z is estimated without bias, log Z from below on average."""
        return float(log_mean_exp(self.log_weight))

    @property
    def relative_error(self) -> float:
        """Standard error of Zhat over Zhat: `sd(w) / mean(w) / sqrt(chains)`."""
        w = (self.log_weight - self.log_weight.max()).exp()
        return float(w.std() / w.mean()) / math.sqrt(len(w))

    @property
    def standard_error(self) -> float:
        """Of `log_z`, to first order the relative error of Zhat; infinite where too few chains
        hold all the weight to tell.
        """
        few = self.ess * len(self.log_weight) <= min(TOO_FEW, 0.375 * len(self.log_weight))
        return math.inf if few else self.relative_error

    @property
    def ess(self) -> float:
        """Effective sample size of the weights over their number."""
        return float(effective_sample_size(self.log_weight)) / len(self.log_weight)

    @property
    def upper(self) -> float | None:
        """Minus the log of the mean reverse weight, log Z from above on average; None without
        exact samples.
        """
        w = self.reverse_log_weight
        return None if w is None else -float(log_mean_exp(w))

    def lower_bound(self, confidence: float = 0.95) -> float:
        """Not above log Z with at least this probability: `log_z - log(1 / (1 - confidence))`."""
        return self.log_z - _margin(confidence)

    def upper_bound(self, confidence: float = 0.95) -> float | None:
        """Not below log Z with at least this probability, if the samples given were exact; None
        without them.
        """
        margin = _margin(confidence)
        return None if self.upper is None else self.upper + margin

    def __str__(self) -> str:
        chains = len(self.log_weight)
        lines = [
            f"log Z >= {self.lower_bound():.3f} with 95 % confidence, whatever the chains did",
            f"estimate {self.log_z:.3f}, standard error {self.standard_error:.3f}, ESS "
            f"{self.ess * chains:.0f} of {chains} chains: true if these visited every mode",
        ]
        if (upper := self.upper_bound()) is None:
            lines.append("not bounded from above: that takes exact samples of the model")
        else:
            lines.append(
                f"log Z <= {upper:.3f} with 95 % confidence, if the samples given were exact"
            )
        return "\n".join(lines)


def _margin(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence must lie between 0 and 1, both excluded, found {confidence}: say 0.95"
        )
    return -math.log1p(-confidence)
