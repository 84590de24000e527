"""Which precision is chosen: by what the processor has, and by what is measured."""

from __future__ import annotations

import pytest
import torch

from reconx_pl import devices


@pytest.mark.parametrize(
    ("capability", "share", "wanted"),
    [
        ("AVX512", 0.5, "bf16"),
        ("AVX512", 0.95, "32"),  # has it, and is not clearly faster
        ("AVX512", 9.0, "32"),  # emulates it
        ("AVX2", 0.5, "32"),  # emulates it, whatever a noisy measurement says
        ("DEFAULT", 0.5, "32"),
    ],
)
def test_bfloat16_is_taken_where_the_processor_has_it_and_it_is_clearly_faster(
    capability: str, share: float, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(devices, "bfloat16_share", lambda: share)
    assert devices.faster_precision("cpu") == wanted


def test_the_measurement_is_made_once_and_is_a_share() -> None:
    devices.bfloat16_share.cache_clear()
    first = devices.bfloat16_share()
    assert first > 0 and devices.bfloat16_share() == first and devices.bfloat16_share.cache_info().misses == 1
