"""What has to be started: one attempt of a run, from the job's words to a frozen record.

Made by `trainjob.plan`; everything in this package is derived from it. It holds no secret.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Launcher = Literal["single", "torchrun", "mpi", "msrun"]
Device = Literal["cpu", "cuda", "npu"]


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file that the ranks see at an absolute path (`trainjob.launch.mounts`).

    Attributes:
        target: The path that they use.
        source: What is there.
        is_read_only: Whether it is shared with other runs; a link cannot hold ranks to it.
    """

    target: str
    source: Path
    is_read_only: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """An accelerator of this machine.

    Attributes:
        name: Which one it is, the same for every process: ``cuda:2`` is that of ``/dev/nvidia2``.
        choice: What chooses it in the environment of a rank: its place among those that are here,
            or its UUID.
    """

    name: str
    choice: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Cards that a run has for itself (`trainjob.launch.card_leases`).

    Attributes:
        cards: The cards, in ascending order.
        claim: A file descriptor; while a process has it open, no other run gets the cards.
    """

    cards: tuple[Card, ...]
    claim: int


@dataclass(frozen=True, slots=True)
class CoreLease:
    """Cores that the ranks of a run compute on (`trainjob.launch.core_leases`).

    Attributes:
        cores: Their numbers, in ascending order.
        claim: A file descriptor; while a process has it open, other runs choose other cores.
        shared_with: The runs that some of the cores had before, since too few were free.
    """

    cores: tuple[int, ...]
    claim: int
    shared_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """One attempt of a run on this machine.

    Attributes:
        run_id: The run mark: every process of the run carries it as ``TRAINJOB_RUN_ID``.
        launcher: What starts the ranks.
        world_size: Number of ranks.
        program: What every rank executes: a script relative to `code_dir`, or a command, and its
            arguments.
        is_script: Whether `program` is a Python script.
        code_dir: Working directory of the ranks.
        log_dir: Where ``rank-N.log``, ``launcher.log`` and ``records/`` go; of this attempt alone.
        env: Variables that the job adds to the environment of the ranks.
        device: Kind of device the ranks compute on.
        cores: Cores that the ranks share; None: all cores of the machine.
        auto_stop_s: Stop the training after this long; None: never.
        grace_s: How long ranks may take to leave after a stop request before they are killed.
        stall_s: Stop the training when nothing was seen of it for this long; None: never.
        watched_dirs: Folders whose growth shows that the training goes on.
        attempt: Which attempt of the run this is, counted from 0.
        mounts: Folders that the ranks see at absolute paths, those above others first.
        is_sandboxed: Whether the ranks see nothing of the machine but its programs and `mounts`
            (`trainjob.launch.sandbox`).
        python: The Python of the ranks and their launcher; None: that of this process.
        lease: The cards of the ranks; None: they have those that the environment leaves visible.
        core_lease: The cores that they compute on; None: any of the machine.
        rank_cores: Those of each rank (`trainjob.launch.numa`); None: all that the ranks have.
        memory_bytes: The most memory that they may take together; None: that of the machine.
        memory_group: The cgroup that holds them to it; None: the supervisor watches.
        is_restartable: Whether another process of the run goes on if that of its flow dies; then
            ranks have less of the grace.
    """

    run_id: str
    launcher: Launcher
    world_size: int
    program: tuple[str, ...]
    is_script: bool
    code_dir: Path
    log_dir: Path
    env: dict[str, str]
    device: Device
    cores: int | None
    auto_stop_s: float | None
    grace_s: float
    stall_s: float | None = None
    watched_dirs: tuple[Path, ...] = ()
    attempt: int = 0
    mounts: tuple[Mount, ...] = ()
    is_sandboxed: bool = False
    python: Path | None = None
    lease: Lease | None = None
    core_lease: CoreLease | None = None
    rank_cores: tuple[tuple[int, ...], ...] | None = None
    memory_bytes: int | None = None
    memory_group: Path | None = None
    is_restartable: bool = False

    @property
    def claims(self) -> tuple[int, ...]:
        """The file descriptors that have to stay open until the last rank has ended."""
        return tuple(lease.claim for lease in (self.lease, self.core_lease) if lease)

    @property
    def records_dir(self) -> Path:
        """The folder in which every rank records how it began, failed and ended."""
        return self.log_dir / "records"

    @property
    def order_file(self) -> Path:
        """The file that tells the supervisor and the ranks what to do."""
        return self.records_dir / "order.json"

    @property
    def stop_file(self) -> Path:
        """The file whose presence asks the ranks to save and leave (`trainjob.progress`)."""
        return self.records_dir / "stop-request"

    @property
    def launcher_log(self) -> Path:
        """The file with the output of the launcher and the supervisor themselves."""
        return self.log_dir / "launcher.log"

    def rank_log(self, rank: int) -> Path:
        """Return the file with everything that a rank wrote."""
        return self.log_dir / f"rank-{rank}.log"
