"""A real Slurm of two nodes on this machine, with keys, ports and a folder of its own."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.cli import ROOT

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=20
SlurmdTimeout=10
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2
FirstJobId={first}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=64000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=64000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here; None where one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    absent = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    return f"apt-get install slurm-wlm munge: no {', '.join(absent)}" if absent else None


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin"


class Cluster:
    """A running Slurm.

    Attributes:
        environment: variables under which its commands, and jobs, run.
        daemons: the processes, by name; a node's is named like it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            "PATH": _path(),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def start(self) -> None:
        """Starts the daemons; returns when both nodes are there."""
        folder = self._folder
        for name in ("state", *NODES):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports, first = _free_ports(3), random.randrange(1, 19_000)  # jobs derive ports from ids
        conf = _CONF.format(host=socket.gethostname(), ports=ports, first=first, folder=folder)
        (folder / "slurm.conf").write_text(conf)
        files = ("socket", "pid", "log", "seed")
        own = [f"--{name}{'-file' * (name != 'socket')}={folder}/munge.{name}" for name in files]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", *own)
        wait_for(lambda: (folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.call("sinfo", "-h", "-o", "%D %t").strip() == "2 idle")

    def start_node(self, node: str) -> None:
        """Starts a node's daemon."""
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def stop(self) -> None:
        """Ends all jobs and daemons, whatever state they are in."""
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        mine = self.environment["SLURM_CONF"]
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == mine:
                    process.kill()

    def call(self, *command: str, folder: Path | None = None) -> str:
        """What a command prints."""
        done = subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def submit(self, *arguments: object, folder: Path) -> str:
        """The number of the job that `sbatch ARGUMENTS` makes in a folder."""
        words = [str(argument) for argument in arguments]
        return self.call("sbatch", "--parsable", *words, folder=folder).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job."""
        words = self.call("scontrol", "show", "job", "-o", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, number: str, *, seconds: float = 60) -> dict[str, str]:
        """What Slurm says of a job that has come to its end."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_for(lambda: self.job(number)["JobState"] in over, seconds=seconds)
        return self.job(number)

    def _daemon(self, *command: str, name: str | None = None) -> None:
        name = name or command[0]
        with (self._folder / f"{name}.out").open("a") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out
            )


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A Slurm of two nodes while the block lasts."""
    slurm = Cluster(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
