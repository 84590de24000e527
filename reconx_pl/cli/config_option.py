"""The option ``--config`` of every command."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from reconx_pl.files.configs import find_config, has_base, read_config


class ConfigOption(ActionConfigFile):
    """A YAML file over its bases; ``configs/...`` that is not here is the one that comes with the package."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        found = find_config(values)
        if found is not None:
            values = yaml.safe_dump(read_config(found), sort_keys=False) if has_base(found) else str(found)
        super().__call__(parser, cfg, values, option_string)
