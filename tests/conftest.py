"""Fixtures for the whole suite: where the golden kits and the real photographs are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from golden_kits import SHARED, golden_folder

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
torch.set_num_threads(1)  # spinning threads beside busy neighbours are slower than one thread


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real photographs, indices and golden numbers beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(
            f"needs the test material in {SHARED} (real photographs, indices); it is not part of the repository"
        )
    return SHARED


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden kits."""
    folder = golden_folder()
    if folder is None:
        pytest.skip("needs golden kits: set RECONX_GOLDEN, or put them into tests/golden")
    return folder
