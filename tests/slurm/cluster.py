"""A real Slurm cluster on this machine: a controller, and nodes with a host name, a network and a
disk of their own.

Each node's slurmd lives in its own network, UTS and mount namespace. All nodes hang on one bridge,
as on a switch; pulling a node's plug is `cut_off`. Needs root and Debian's slurm-wlm, munge and
iproute2 (`install.sh`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

CPUS_PER_NODE = 4
GPUS_PER_NODE = 2
SECONDS_UNTIL_A_SILENT_NODE_IS_DOWN = 10
FINAL_STATES = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
COMMANDS = ("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare")

SLURM_CONF = """
ClusterName=ptycho
SlurmctldHost={controller}({network}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket
SlurmctldPort={port}
SlurmdPort=36818
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmdSpoolDir={root}/spool.%n
StateSaveLocation={root}/state
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout={silent}
JobRequeue=1
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=3
GresTypes=gpu
"""


class SlurmCluster:
    """`num_nodes` nodes, named node1, node2, ...; `root` takes their configuration, logs and
    disks."""

    def __init__(self, root: Path, num_nodes: int = 2) -> None:
        self.root = root
        self.nodes = [f"node{number}" for number in range(1, num_nodes + 1)]
        # of network interfaces, whose names may have 15 characters
        self.tag = f"pt{os.getpid() % 100_000}"
        self.network = f"10.{77 + os.getpid() % 100}.{os.getpid() % 250}"
        self.node_disk = root / "node_disk"
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in (
            "state",
            "munge",
            "gpu",
            "node_disk",
            *(f"disk.{node}" for node in self.nodes),
        ):
            (self.root / name).mkdir(parents=True)
        for directory in (self.root, *self.root.parents):  # munged runs as another user
            directory.chmod(directory.stat().st_mode | 0o055)
        self._configure()
        self._start_network()
        self._start_munge()
        self._daemon("slurmctld", "-D", "-c")
        for number, node in enumerate(self.nodes, 1):
            inside = (
                f"hostname {node}; mount --bind {self.root}/hosts /etc/hosts; mount --bind "
                f"{self.root}/disk.{node} {self.node_disk}; "
                f"exec slurmd -D -N {node}"
            )
            self._daemon(
                "nsenter",
                f"--net=/run/netns/{self.tag}{number}",
                "unshare",
                "--uts",
                "--mount",
                "bash",
                "-c",
                inside,
            )
        self.wait_until(
            lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "idle nodes", timeout=60
        )

    def stop(self) -> None:
        self.run("scancel", "--user=root", check=False)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(3)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for number in range(1, len(self.nodes) + 1):
            for process in self._output("ip", "netns", "pids", f"{self.tag}{number}").split():
                os.kill(int(process), signal.SIGKILL)  # what was left of jobs
            subprocess.run(
                ["ip", "link", "del", f"{self.tag}v{number}"],
                check=False,
                stderr=subprocess.DEVNULL,
            )
            subprocess.run(
                ["ip", "netns", "del", f"{self.tag}{number}"],
                check=False,
                stderr=subprocess.DEVNULL,
            )
        subprocess.run(
            ["ip", "link", "del", f"{self.tag}br"], check=False, stderr=subprocess.DEVNULL
        )

    def run(
        self, *command: str | Path, check: bool = True, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """A Slurm command; stdout holds stderr too."""
        return subprocess.run(
            [str(part) for part in command],
            env={**self.environment, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=check,
        )

    def submit(
        self, script: Path, *arguments: str, options: tuple[str, ...] = (), **env: str
    ) -> int:
        """Submit a batch script from the project's directory; gives the job's number."""
        return int(
            self.run(
                "sbatch", "--parsable", "--partition=all", *options, script, *arguments, **env
            ).stdout.split()[-1]
        )

    def state(self, job: int) -> str:
        found = re.search(
            r"JobState=(\w+)", self.run("scontrol", "show", "job", str(job), check=False).stdout
        )
        return found[1] if found else "UNKNOWN"  # the controller is busy

    def said_of(self, job: int) -> str:
        """The lines of the logs of controller and nodes that name a job."""
        logs = {
            path.stem: path.read_text(errors="replace").splitlines()
            for path in self.root.glob("slurm*.log")
        }
        return "\n".join(
            f"{name}: {line}"
            for name, lines in logs.items()
            for line in lines
            if re.search(rf"JobId={job}\b", line, re.IGNORECASE)
        )

    def states(self) -> dict[str, str]:
        rows = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False).stdout.split()
        return dict(zip(rows[::2], rows[1::2], strict=False))

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                log = (
                    (self.root / "slurmctld.log").read_text()[-2000:]
                    if (self.root / "slurmctld.log").exists()
                    else ""
                )
                raise AssertionError(f"no {what} within {timeout} s\n{log}")
            time.sleep(0.2)

    def wait_for_end(self, job: int, timeout: float = 300) -> str:
        """Final state of a job. Slurm lets a requeued one wait for two minutes; it is told not
        to."""
        state, since = "", 0.0

        def has_ended() -> bool:
            nonlocal state, since
            found = self.state(job)
            if found != state:
                state, since = found, time.monotonic()
            # within a second Slurm takes it for the attempt that it revoked
            if state == "PENDING" and 3 < time.monotonic() - since < 4:
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            # a job that is being requeued passes through some of them
            return state in FINAL_STATES and time.monotonic() - since > 4

        self.wait_until(has_ended, f"end of job {job}", timeout)
        return state

    def cut_off(self, node: str) -> None:
        """Pull the plug of a node's network; what runs on it runs on."""
        self._ip("link", "set", f"{self.tag}v{self.nodes.index(node) + 1}", "nomaster")

    def put_back(self, node: str) -> None:
        self._ip(
            "link", "set", f"{self.tag}v{self.nodes.index(node) + 1}", "master", f"{self.tag}br"
        )
        self.wait_until(lambda: self.states().get(node) == "idle", f"{node} back", timeout=120)

    def _configure(self) -> None:
        memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 9 // 10 >> 20
        lines = [
            SLURM_CONF.format(
                controller=os.uname().nodename,
                network=self.network,
                port=30_000 + os.getpid() % 20_000,  # another cluster may be up
                root=self.root,
                silent=SECONDS_UNTIL_A_SILENT_NODE_IS_DOWN,
            )
        ]
        gpus, hosts = [], ["127.0.0.1 localhost", f"{self.network}.254 {os.uname().nodename}"]
        for number in range(GPUS_PER_NODE):  # Slurm counts device files; these are /dev/null
            os.mknod(self.root / "gpu" / f"nvidia{number}", 0o20666, os.makedev(1, 3))
        for number, node in enumerate(self.nodes, 1):
            lines.append(
                f"NodeName={node} NodeAddr={self.network}.{number} CPUs={CPUS_PER_NODE} "
                f"RealMemory={memory_mb} Gres=gpu:{GPUS_PER_NODE}"
            )
            gpus.append(
                f"NodeName={node} Name=gpu File={self.root}/gpu/nvidia[0-{GPUS_PER_NODE - 1}]"
            )
            hosts.append(f"{self.network}.{number} {node}")
        lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        for name, content in (("slurm.conf", lines), ("gres.conf", gpus), ("hosts", hosts)):
            (self.root / name).write_text("\n".join(content) + "\n")

    def _start_network(self) -> None:
        bridge = f"{self.tag}br"
        self._ip("link", "add", bridge, "type", "bridge")
        self._ip("addr", "add", f"{self.network}.254/24", "dev", bridge)
        self._ip("link", "set", bridge, "up")
        for number in range(1, len(self.nodes) + 1):
            space, plug = f"{self.tag}{number}", f"{self.tag}v{number}"
            self._ip("netns", "add", space)
            self._ip("link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("link", "set", plug, "master", bridge, "up")
            self._ip("-n", space, "addr", "add", f"{self.network}.{number}/24", "dev", "eth0")
            self._ip("-n", space, "link", "set", "lo", "up")
            self._ip("-n", space, "link", "set", "eth0", "up")

    def _start_munge(self) -> None:
        directory = self.root / "munge"
        (directory / "key").write_bytes(os.urandom(128))
        for path in (directory, directory / "key"):
            shutil.chown(path, "munge", "munge")
        (directory / "key").chmod(0o400)
        places = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        self._daemon(
            "runuser",
            "-u",
            "munge",
            "--",
            "munged",
            "-F",
            *(f"--{option}={directory / name}" for option, name in places.items()),
        )
        self.wait_until((directory / "socket").exists, "munge", timeout=20)

    def _daemon(self, *command: str) -> None:
        with (self.root / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def _output(self, *command: str) -> str:
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout
