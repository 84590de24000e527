"""Packages of the system that some tests need, installed where ``RECONX_INSTALL_PACKAGES=1`` allows it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SWITCH = "RECONX_INSTALL_PACKAGES"


class NotInstalled(Exception):
    """The packages could not be installed, and why."""


def install(packages: str) -> None:
    """Install Debian packages if the environment says so; does nothing otherwise, nor without apt-get or root.

    Raises:
        NotInstalled: apt-get failed or took too long.
    """
    if os.environ.get(SWITCH) != "1" or shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    patience = ["-o", "Acquire::http::Timeout=15", "-o", "Acquire::Retries=1", "-o", "DPkg::Lock::Timeout=30"]
    with (Path(tempfile.gettempdir()) / f"{SWITCH}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be at it
        for command in ("update", f"install -y --no-install-recommends {packages}"):
            arguments = ["apt-get", "-qq", *patience, *command.split()]
            try:
                subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=150, check=True)
            except subprocess.CalledProcessError as error:
                raise NotInstalled(f"apt-get {command} failed: {error.stderr.strip()[-300:]}") from error
            except subprocess.TimeoutExpired as error:
                raise NotInstalled(f"apt-get {command} took more than 150 s") from error


def remedy(packages: str) -> str:
    return f"apt-get install -y --no-install-recommends {packages}, or {SWITCH}=1 as root on Debian"
