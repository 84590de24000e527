"""Photographs that the tests of the chain share."""

from __future__ import annotations

import pytest
from rooms import Room, room


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return room(tmp_path_factory.mktemp("photographs"))
