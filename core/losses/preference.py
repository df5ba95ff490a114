"""Preference losses as functions of energies: Euclidean DPO, S-DPO and AS-DPO differ in the energies alone.

Energies are mean squared residuals of a prediction, velocity or epsilon, weighed by frequency or not (`sobolev.SobolevNorm`). One
explicit `logit_scale` stands for every paper's beta: ASASR's 2000, DP2O-SR's 5000 / 2.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_same_shape
from ..records import LossTerms

ASASR_LOGIT_SCALE = 2000.0
DP2O_SR_LOGIT_SCALE = 5000.0 / 2  # its beta of 5000 is Diffusion-DPO's, which the loss halves


def preference_loss(chosen: Tensor, rejected: Tensor, *, logit_scale: float, weights: Tensor | None = None) -> Tensor:
    """How little the policy has come to prefer the chosen sample, compared with the reference.

        m = logit_scale (dE_rejected - dE_chosen);   L = -w log sigmoid(m) = w softplus(-m)

    with dE = E_policy - E_reference: below 0 where the policy fits a sample better than the reference does. Loser minus winner.

    Args:
        chosen: dE of the chosen samples, [B] float.
        rejected: dE of the rejected ones, same shape.
        logit_scale: kappa > 0.
        weights: how much each pair counts, [B], without gradient; None: 1.

    Returns:
        [B] float32 (float64 for float64); log 2 where the policy is the reference.

    Raises:
        ValueError: shapes differ, or a scale that is not above 0.

    Source:
        ASASR, arXiv:2605.23264, Eq. (15), (18); symbols: x^w -> chosen, x^l and x^a -> rejected, beta -> logit_scale.
        DP2O-SR, arXiv:2510.18851v1, section 4.3, with beta / 2 -> logit_scale; Wallace et al. 2023, arXiv:2311.12908.

    Example:
        >>> preference_loss(torch.tensor([-0.001]), torch.tensor([0.0]), logit_scale=2000).round(decimals=4)
        tensor([0.1269])
    """
    check_same_shape(chosen, rejected, "chosen", "rejected")
    if chosen.ndim != 1:
        raise ValueError(f"chosen: expected one value per pair [B], got {tuple(chosen.shape)}; average over elements first")
    loss = F.softplus(-margins(chosen, rejected, logit_scale=logit_scale))
    if weights is None:
        return loss
    check_same_shape(weights, chosen, "weights", "chosen")
    return loss * weights.detach().to(loss)


def margins(chosen: Tensor, rejected: Tensor, *, logit_scale: float) -> Tensor:
    """The logits m of `preference_loss`, [B]; above 0 where the policy agrees with the preference."""
    if not math.isfinite(logit_scale) or logit_scale <= 0:
        raise ValueError(f"logit_scale: expected a number above 0, got {logit_scale}; ASASR uses 2000, DP2O-SR 2500")
    wide = torch.promote_types(chosen.dtype, torch.float32)
    return logit_scale * (rejected.to(wide) - chosen.to(wide))


@dataclass(frozen=True)
class PairEnergies:
    """Energies of both models on both samples of each pair, each [B] or, split into bands, [B, bands].

    Attributes:
        policy_chosen: of the policy on the chosen samples, with gradient.
        policy_rejected: the same on the rejected ones.
        reference_chosen: of the frozen reference.
        reference_rejected: the same on the rejected ones.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    @classmethod
    def of(cls, policy: Tensor, reference: Tensor) -> "PairEnergies":
        """From energies of stacked batches: all chosen samples, then all rejected ones, [2 B, ...].

        Raises:
            ValueError: shapes differ, or an odd number of samples.
        """
        check_same_shape(policy, reference, "policy", "reference")
        if policy.shape[0] % 2:
            raise ValueError(f"policy: expected chosen and rejected samples, 2 B in all, got {policy.shape[0]}; stack both")
        half = policy.shape[0] // 2
        return cls(policy[:half], policy[half:], reference[:half].detach(), reference[half:].detach())

    @property
    def chosen(self) -> Tensor:
        """dE of the chosen samples, below 0 where the policy is the better one. ASASR, Eq. (14)."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected(self) -> Tensor:
        """dE of the rejected samples."""
        return self.policy_rejected - self.reference_rejected


def preference_terms(
    energies: PairEnergies, *, logit_scale: float, weights: Tensor | None = None, winner_anchor: float = 0.0
) -> LossTerms:
    """The preference loss, and the anchor that keeps the policy's fit to the chosen samples.

        L = L_preference + winner_anchor E_policy(chosen)

    Args:
        energies: [B] each.
        logit_scale: see `preference_loss`.
        weights: see `preference_loss`; they weigh the preference alone.
        winner_anchor: >= 0; 0, the papers', leaves the anchor out.

    Returns:
        `preference` and, if it is asked for, `anchor`.

    Raises:
        ValueError: a negative anchor; see `preference_loss`.

    Source:
        asasr.md 5.5: the margin can grow while both energies rise.
    """
    if not math.isfinite(winner_anchor) or winner_anchor < 0:
        raise ValueError(f"winner_anchor: expected at least 0, got {winner_anchor}; 0 leaves it out")
    loss = preference_loss(energies.chosen, energies.rejected, logit_scale=logit_scale, weights=weights)
    if winner_anchor == 0:
        return LossTerms({"preference": loss})
    return LossTerms({"preference": loss, "anchor": energies.policy_chosen}, {"anchor": winner_anchor})


def preference_figures(energies: PairEnergies, *, logit_scale: float) -> dict[str, Tensor]:
    """What to watch while a policy is trained, each a detached mean over the batch.

    Returns:
        margin: mean logit.
        agreement: share of pairs with a margin above 0; 0 at the start, when all margins are 0.
        chosen, rejected: dE of each.
        chosen_drift: dE of the chosen samples as a share of the reference's energy there; above 0 the policy fits them worse.

    Source:
        asasr.md 1.4 and 5.5; dp2o-sr.md 2.8.
    """
    chosen, rejected = energies.chosen.detach().float(), energies.rejected.detach().float()
    logits = margins(chosen, rejected, logit_scale=logit_scale)
    return {
        "margin": logits.mean(),
        "agreement": (logits > 0).float().mean(),
        "chosen": chosen.mean(),
        "rejected": rejected.mean(),
        "chosen_drift": chosen.mean() / energies.reference_chosen.detach().float().mean().clamp_min(1e-12),
    }
