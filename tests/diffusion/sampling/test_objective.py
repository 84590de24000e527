"""The objective: what a perfect model scores, where the gradient goes, how steps are drawn and weighted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reconx_pl.diffusion.sampling.objective import diffusion_loss
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.errors import ConfigurationError

X0 = torch.randn(6, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(),
        ScheduleConfig(prediction="epsilon", zero_terminal_snr=False),
        ScheduleConfig(prediction="sample"),
    ],
)
def test_a_perfect_model_scores_zero_and_none_scores_the_targets_energy(config: ScheduleConfig) -> None:
    schedule = NoiseSchedule(config)
    t, noise = torch.tensor([0, 10, 399, 500, 998, 999]), torch.randn_like(X0)
    target = schedule.target(X0, noise, t)
    assert diffusion_loss(lambda x, s: target, schedule, X0, None, t=t, noise=noise).loss == 0
    result = diffusion_loss(lambda x, s: torch.zeros_like(x), schedule, X0, None, t=t, noise=noise)
    torch.testing.assert_close(result.per_sample, target.pow(2).mean((1, 2, 3, 4)))
    torch.testing.assert_close(result.loss, target.pow(2).mean())


def test_same_seed_same_loss_and_every_step_is_drawn() -> None:
    schedule = NoiseSchedule()
    many = X0[:1].expand(20000, -1, -1, -1, -1)[:, :1, :1, :1, :1]
    first = diffusion_loss(lambda x, s: x, schedule, many, torch.Generator().manual_seed(1))
    second = diffusion_loss(lambda x, s: x, schedule, many, torch.Generator().manual_seed(1))
    assert torch.equal(first.loss, second.loss) and torch.equal(first.t, second.t)
    counts = torch.bincount(first.t, minlength=1000)
    assert len(counts) == 1000 and counts.min() > 0 and counts.max() < 60


def test_gradient_reaches_the_model_only_through_the_prediction() -> None:
    layer = nn.Conv3d(4, 4, 1)
    result = diffusion_loss(lambda x, t: layer(x), NoiseSchedule(), X0, torch.Generator().manual_seed(0))
    result.loss.backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    assert not result.per_sample.requires_grad


def test_min_snr_weights() -> None:
    schedule, t, noise = NoiseSchedule(), torch.tensor([5, 999]), torch.randn_like(X0[:2])

    def zero(x: Tensor, steps: Tensor) -> Tensor:
        return torch.zeros_like(x)

    plain = diffusion_loss(zero, schedule, X0[:2], None, t=t, noise=noise)
    weighted = diffusion_loss(zero, schedule, X0[:2], None, t=t, noise=noise, weighting="min_snr")
    snr = float(schedule.snr(t[:1]))
    assert snr > 5
    assert float(weighted.loss) == pytest.approx(float(plain.per_sample[0]) * 5 / (snr + 1) / 2, rel=1e-5)


def test_bfloat16_predictions_are_compared_in_float32() -> None:
    result = diffusion_loss(lambda x, t: x.bfloat16(), NoiseSchedule(), X0, torch.Generator().manual_seed(0))
    assert result.loss.dtype == torch.float32


def test_missing_randomness_and_unknown_weighting_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Generator"):
        diffusion_loss(lambda x, t: x, NoiseSchedule(), X0, None)
    with pytest.raises(ConfigurationError, match="weighting"):
        diffusion_loss(lambda x, t: x, NoiseSchedule(), X0, torch.Generator(), weighting="snr")


def test_a_share_of_the_samples_is_drawn_at_the_last_step() -> None:
    many = torch.zeros(4000, 1, 1, 1, 1)

    def drawn(share: float) -> Tensor:
        schedule = NoiseSchedule(ScheduleConfig(prediction="sample", terminal_share=share))
        return diffusion_loss(lambda x, s: x, schedule, many, torch.Generator().manual_seed(3)).t

    assert 0.47 < float((drawn(0.5) == 999).float().mean()) < 0.53
    assert (drawn(1.0) == 999).all() and float((drawn(0.0) == 999).float().mean()) < 0.01
    with pytest.raises(ConfigurationError, match="terminal_share"):
        ScheduleConfig(terminal_share=1.5)
