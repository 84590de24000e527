"""files/identity.py."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def plain_settings(config: Any) -> dict[str, Any]:
    """A dataclass of settings as plain values, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def hash_of(config: Any) -> str:
    """SHA-256 of settings as JSON with sorted keys: equal settings, equal hash, on every machine."""
    text = json.dumps(plain_settings(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
