"""A real Slurm of one node on this machine, with an own key, own ports and own state, for tests."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from debian_packages import NotInstalled, install, remedy

PACKAGES = "slurm-wlm munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=5,sched_interval=5
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime={grace} PreemptMode=REQUEUE MaxTime=30
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=30
"""


class SlurmUnavailable(Exception):
    """There is no Slurm here, and why."""


def require_slurm() -> None:
    """Find Slurm's programs, or install them where ``RECONX_INSTALL_PACKAGES=1`` allows it.

    Raises:
        SlurmUnavailable: with the reason and the remedy.
    """
    if os.geteuid() != 0:
        raise SlurmUnavailable("Slurm's daemons need root here")
    if _missing():
        try:
            install(PACKAGES)
        except NotInstalled as error:
            raise SlurmUnavailable(str(error)) from error
    if missing := _missing():
        raise SlurmUnavailable(f"no {', '.join(missing)} here: {remedy(PACKAGES)}")


def _missing() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class Cluster:
    """Started on entering, ended with all its jobs on leaving.

    Args:
        folder: of keys, logs and state; a short path, since it holds a socket.
        grace: seconds that a preempted job of the partition ``low`` has.

    Raises:
        SlurmUnavailable: the daemons do not come up.
    """

    def __init__(self, folder: Path, grace: int) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.environment |= {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", "spool"):
            (folder / name).mkdir()
        controller, daemon = _free_ports(2)
        (folder / "slurm.conf").write_text(
            CONF.format(folder=folder, host=self.host, controller=controller, daemon=daemon, grace=grace)
        )
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)

    def __enter__(self) -> Cluster:
        try:
            files = {"key": "key", "socket": "socket", "pid": "pid", "log": "log", "seed": "seed"}
            options = [f"--{name}-file={self.folder}/munge.{end}" for name, end in files.items() if name != "socket"]
            self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *options)
            self._until("munged", lambda: (self.folder / "munge.socket").exists(), 20)
            self._start("slurmctld", "-D", "-c")
            self._start("slurmd", "-D", "-N", self.host)
            self._until("slurmd", lambda: "idle" in self.ask("sinfo", "-h", "-p", "low", "-o", "%T"), 40)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if len(self._daemons) > 1:
            self.ask("scancel", "--signal=KILL", "--full", "-u", "root")
            self.ask("scancel", "-u", "root")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.out").open("wb") as out:
            command = [str(shutil.which(program, path=PATH)), *arguments]
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)
            )

    def _until(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in self._daemons):
                logs = " | ".join(path.read_text()[-300:] for path in sorted(self.folder.glob("*.out")))
                raise SlurmUnavailable(f"{what} does not come up on this machine: {logs}")
            time.sleep(0.2)

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints; empty where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def submit(self, script: Path, *options: str) -> str:
        """Number of the job."""
        done = subprocess.run(
            ["sbatch", *options, str(script)], env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

    def state(self, job: str) -> str:
        """``RUNNING``, ``PENDING``, ``COMPLETED``, ..."""
        found = re.search(r"JobState=(\w+)", self.ask("scontrol", "show", "job", job))
        return found[1] if found else "UNKNOWN"

    def start_now(self, job: str, seconds: float) -> None:
        """Start a requeued job, which otherwise waits for two minutes; asked again, as one that still ends is deaf."""
        end = time.monotonic() + seconds
        while self.state(job) != "RUNNING" and time.monotonic() < end:
            self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(1)

    def restarts(self, job: str) -> int:
        """How often the job has been requeued."""
        found = re.search(r"Restarts=(\d+)", self.ask("scontrol", "show", "job", job))
        return int(found[1]) if found else 0

    def wait(self, job: str, *states: str, seconds: float) -> str:
        """Wait until the job is in one of these states; returns its last one."""
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states and time.monotonic() < end:
            time.sleep(0.3)
        return state


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports
