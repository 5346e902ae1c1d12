"""A real Slurm cluster of two nodes on this machine, with its own keys, ports and folder."""

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
# Timing, so that tests wait little: cred_expire is also how long a requeued job waits before it
# starts again (default: 120 s), and sched_interval how often the scheduler looks at the queue. That
# time limits are checked only every 30 s cannot be configured. linuxproc and task/none work without
# cgroups, and config_overrides lets a small machine pretend to be two nodes of 16 cores.
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
    """Return why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    absent = [name for name in DAEMONS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"apt-get install slurm-wlm munge: {', '.join(absent)} not found"
    return None


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin"


class Cluster:
    """A running Slurm cluster.

    Attributes:
        environment: environment variables of its commands and jobs.
        daemons: the processes, by name; the daemon of a node has the name of the node.
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
        """Start the daemons; return when both nodes are idle."""
        folder = self._folder
        for name in ("state", *NODES):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        # Jobs derive their ports from their ids, so clusters of concurrent tests start at random
        # ids.
        ports, first = _free_ports(3), random.randrange(1, 19_000)
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
        """Start the daemon of a node."""
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def stop(self) -> None:
        """Kill all jobs and daemons, whatever state they are in."""
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        # Jobs outlive a killed slurmd. They are found by the configuration file in their
        # environment.
        conf = self.environment["SLURM_CONF"]
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == conf:
                    process.kill()

    def call(self, *command: str, folder: Path | None = None) -> str:
        """Run a command, which must succeed; return its output."""
        done = subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def submit(self, *arguments: object, folder: Path) -> str:
        """Run `sbatch ARGUMENTS` in a folder; return the id of the job."""
        words = [str(argument) for argument in arguments]
        return self.call("sbatch", "--parsable", *words, folder=folder).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        words = self.call("scontrol", "show", "job", "-o", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_end(self, job_id: str, *, seconds: float = 60) -> dict[str, str]:
        """Wait until a job has ended; return its fields."""
        end_states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_for(lambda: self.job(job_id)["JobState"] in end_states, seconds=seconds)
        return self.job(job_id)

    def _daemon(self, *command: str, name: str | None = None) -> None:
        name = name or command[0]
        with (self._folder / f"{name}.out").open("a") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out
            )


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a Slurm cluster of two nodes during the block."""
    slurm = Cluster(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Return when the condition holds; fail after so many seconds."""
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
