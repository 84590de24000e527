"""What happens beside training may fail; training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import lightning as L

log = logging.getLogger(__name__)
Hook = Callable[[Any, L.Trainer, L.LightningModule], None]


def tolerated(what: str) -> Callable[[Hook], Hook]:
    """Makes a hook of a callback survive its own errors while a run trains: traceback into the log, training goes on.

    In ``validate`` and ``test``, whose work this is, and in the sanity check before training, which is there to find
    mistakes in the configuration, errors stop as ever. The module comes back in the mode in which it was.

    Where ranks work together in the hook they have to fail together: see ``reconx_pl.files.ranks.all_or_none``.

    Args:
        what: for the log, such as "generating clips".
    """

    def decorate(hook: Hook) -> Hook:
        @wraps(hook)
        def survived(self: Any, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.state.fn != "fit" or trainer.sanity_checking:
                hook(self, trainer, pl_module)
                return
            training = pl_module.training
            try:
                hook(self, trainer, pl_module)
            except Exception:
                log.exception("%s failed at step %d; training goes on", what, trainer.global_step)
            finally:
                pl_module.train(training)

        return survived

    return decorate
