"""A real Slurm for tests: munged, slurmctld and several slurmd on this one machine.

Everything lives in one folder and belongs to who runs the tests, root or not; neither systemd
nor cgroups are needed. Nodes are called node1 to nodeN and share this machine's address and
cores, so that what is counted as a node's CPUs and GPUs need not exist. A process is only ever
signalled if it is one of this cluster: a daemon started here, a step daemon that writes
this cluster's logs, or what such a one runs (by pid and start time).
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import processes
import reaper
from processes import Known

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "scontrol", "sbatch", "srun", "sinfo")
_HERE = Path(__file__).parent
_PATH = os.pathsep.join([str(_HERE / "bin"), os.environ["PATH"], "/usr/sbin", "/sbin"])


def why_not() -> str | None:
    """Why no cluster can be started here; None if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    if missing:
        return (
            f"no Slurm ({', '.join(missing)} missing): "
            "apt-get install slurmctld slurmd slurm-client munge"
        )
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return f"the host name {socket.gethostname()} does not resolve: name it in /etc/hosts"
    return None


class Cluster:
    """A Slurm of `nodes` nodes, each with `cpus` CPUs and `gpus` GPUs (as far as Slurm knows).

    Partitions: `main` (the default), and `urgent`, whose jobs preempt those of `main`.
    """

    def __init__(self, folder: Path, nodes: int = 4, cpus: int = 4, gpus: int = 0) -> None:
        # Unix sockets of job steps lie in it; their paths have at most 107 characters.
        assert len(str(folder)) <= 50, f"{folder} is too long a name for a cluster's folder"
        self.folder = folder
        self.nodes = [f"node{i}" for i in range(1, nodes + 1)]
        self._cpus, self._gpus = cpus, gpus
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._reaper: subprocess.Popen[bytes] | None = None
        inherited = {
            name: value
            for name, value in os.environ.items()
            # A cluster in which the tests themselves may run.
            if not name.startswith(("SLURM", "SBATCH_", "SRUN_", "SALLOC_"))
        }
        self.environment = inherited | {
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "PATH": _PATH,
        }
        """For whoever is to use this cluster: `subprocess.run(..., env=cluster.environment)`."""

    # ---- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Until every node is idle: a second or two."""
        for name in ("etc", "run", "log", "state", "dev", *(f"spool/{n}" for n in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        # Also ends the cluster where the tests are killed, by closing its input.
        self._reaper = subprocess.Popen(
            [sys.executable, str(_HERE / "reaper.py"), str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        run = self.folder / "run"
        (run / "munge.key").touch(mode=0o600)
        (run / "munge.key").write_bytes(os.urandom(128))
        # --force: it wants the whole path to belong to root or itself, which /tmp does not.
        munged = ["munged", "--foreground", "--force", f"--key-file={run}/munge.key"]
        munged += [f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid"]
        munged += [f"--seed-file={run}/munged.seed", f"--log-file={self.folder}/log/munged.log"]
        self._daemon("munged", *munged)
        self._until(lambda: self._works("munge", "-n", "-S", f"{run}/munge.socket"), "munged")
        self._daemon("slurmctld", "slurmctld", "-D", "-i")
        for node in self.nodes:
            self._start_node(node)
        self._until(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "idle nodes")

    def stop(self) -> None:
        """End all jobs and daemons; nothing of the cluster is left running."""
        for process in reaper.steps(self.folder):
            process.send(signal.SIGKILL)
        for name in [*self.nodes, "slurmctld", "munged"]:
            if name in self._daemons:
                self._end(name)
        if self._reaper:
            self._reaper.communicate(timeout=30)

    def kill_node(self, node: int | str, noticed: bool = True) -> None:
        """SIGKILL everything of a node: its slurmd, its step daemons and all they run.

        Args:
            node: its name, or its number, counted from 1.
            noticed: tell the controller at once; by itself it needs half a minute.
        """
        name = self._name(node)
        steps = reaper.steps(self.folder, name)
        slurmd = self._daemons.pop(name)
        slurmd.kill()
        for process in steps:
            process.send(signal.SIGKILL)
        slurmd.wait()
        if noticed:
            self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def kill_rank(self, node: int | str) -> None:
        """SIGKILL one process that trains on a node, and nothing else."""
        for process in reaper.steps(self.folder, self._name(node)):
            if {"kaizen_dist", "train"} <= set(processes.command(process.pid)):
                process.send(signal.SIGKILL)
                return
        raise AssertionError(f"nothing trains on {self._name(node)}")

    def revive_node(self, node: int | str) -> None:
        """Start a killed node again and wait until it takes jobs."""
        name = self._name(node)
        self._start_node(name)
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
        self._until(lambda: self.states()[name] in ("idle", "mixed", "allocated"), name)

    def kill_batch_shell(self, job: int | str) -> None:
        """SIGKILL the shell that runs a job's batch script, and nothing else."""
        script = f"job{int(job):05d}/slurm_script"

        def shells() -> list[Known]:
            running = [(p, processes.command(p.pid)) for p in reaper.steps(self.folder)]
            return [p for p, said in running if any(word.endswith(script) for word in said)]

        # A job is RUNNING a moment before its shell is there.
        self._until(lambda: bool(shells()), f"batch shell of job {job}", seconds=10)
        for shell in shells():
            shell.send(signal.SIGKILL)

    # ---- use ------------------------------------------------------------------------------

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        seconds: float = 60,
        cwd: Path | None = None,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster, with more environment variables if need be.

        Raises:
            AssertionError: if it fails and `check` is set.
            subprocess.TimeoutExpired: after `seconds`.
        """
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment | variables,
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n"
            f"{done.stdout}{done.stderr}"
        )
        return done

    def submit(self, *arguments: str | Path, **more: str) -> str:
        """`sbatch`; the job's id."""
        return self.run("sbatch", "--parsable", *arguments, **more).stdout.strip().split(";")[0]

    def job(self, job: int | str) -> dict[str, str]:
        """A job's fields as `scontrol show job` names them: JobState, NodeList, Restarts, ..."""
        shown = self.run("scontrol", "show", "job", "-o", str(job)).stdout.splitlines()[0]
        return dict(field.split("=", 1) for field in shown.split() if "=" in field)

    def wait(
        self, job: int | str, states: str | set[str], seconds: float = 60, restarts: int = 0
    ) -> dict[str, str]:
        """Until a job is in one of these states and was requeued `restarts` times or more.

        Returns:
            The fields of the job.
        """
        wanted = {states} if isinstance(states, str) else states
        deadline = time.monotonic() + seconds
        while True:
            fields = self.job(job)
            if fields["JobState"] in wanted and int(fields["Restarts"]) >= restarts:
                return fields
            assert time.monotonic() < deadline, f"not {wanted} in {seconds} s: {fields}"
            time.sleep(0.2)

    def states(self) -> dict[str, str]:
        """The state of every node, in Slurm's words."""
        shown = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", check=False).stdout
        return {line.split()[0]: line.split()[1].rstrip("*~#") for line in shown.splitlines()}

    # ---- inside ---------------------------------------------------------------------------

    def _name(self, node: int | str) -> str:
        return node if isinstance(node, str) else self.nodes[node - 1]

    def _configure(self) -> None:
        host = socket.gethostname()
        address = socket.gethostbyname(host)
        port = _free_ports(address, len(self.nodes) + 1, str(self.folder))
        gres = f"Gres=gpu:{self._gpus}" if self._gpus else ""
        nodes = [
            f"NodeName={node} NodeHostname={host.split('.')[0]} NodeAddr={address} "
            f"Port={port + i} CPUs={self._cpus} CoresPerSocket={self._cpus} "
            f"RealMemory=8192 {gres} State=UNKNOWN"
            for i, node in enumerate(self.nodes, start=1)
        ]
        text = (
            (_HERE / "slurm.conf.in")
            .read_text()
            .format(
                # No job of another cluster has these ids, for a while.
                first_job=int(time.time()) % 50_000_000 + 1,
                host=host.split(".")[0],
                address=address,
                port=port,
                user=getpass.getuser(),
                folder=self.folder,
                gpu_types="GresTypes=gpu" if self._gpus else "",
                nodes="\n".join(nodes),
            )
        )
        (self.folder / "etc" / "slurm.conf").write_text(text)
        devices = [self.folder / "dev" / f"gpu{i}" for i in range(self._gpus)]
        for device in devices:
            if not device.exists():
                _null_device(device)
        (self.folder / "etc" / "gres.conf").write_text(
            "".join(f"Name=gpu File={device} Flags=nvidia_gpu_env\n" for device in devices)
        )

    def _start_node(self, node: str) -> None:
        self._daemon(node, "slurmd", "-D", "-N", node)

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as said:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def _end(self, daemon: str, seconds: float = 10) -> None:
        """Ask it to end, and kill it if it has not done so in this time."""
        process = self._daemons.pop(daemon)
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _works(self, *command: str) -> bool:
        return self.run(*command, check=False).returncode == 0

    def _until(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"no {what}: see {self.folder / 'log'}"
            time.sleep(0.05)


def _null_device(file: Path) -> None:
    try:
        os.mknod(file, 0o666 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        file.symlink_to("/dev/null")


def _free_ports(address: str, count: int, key: str) -> int:
    """The first of `count` ports in a row that nobody listens on, below those that the system
    hands out. Where to begin depends on the key, so that two who look at once do not meet."""
    blocks = 110
    for i in range(blocks):
        first = 20_000 + (zlib.crc32(key.encode()) + i) % blocks * 100
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.create_server((address, port)))
            return first
    raise AssertionError(f"no {count} free ports in a row at {address}")
