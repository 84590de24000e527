"""What devices can do at best, by their makers' data sheets."""

from __future__ import annotations

import re

# Dense bfloat16 TFLOP/s with float32 sums, without sparsity. A device is the first whose words are in its name.
PEAKS: dict[str, float] = {
    "B200": 2250,
    "GH200": 989.4,
    "H200 NVL": 835,
    "H200": 989.4,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989.4,
    "A100": 312,
    "L40S": 362,
    "A40": 149.7,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71,
}


def peak_flops(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by its name ("NVIDIA H100 80GB HBM3"), None where the table lacks it."""
    for words, tera in PEAKS.items():
        if re.search(rf"\b{words}\b", name, re.IGNORECASE):
            return tera * 1e12
    return None
