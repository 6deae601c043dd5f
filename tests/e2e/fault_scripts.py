"""The training script of the fault tests: no torch, saves every step, and fails as it is told.

It is copied into the code folder of a job. Rank 0 trains and saves; the last rank fails once rank 0
has saved the step of ``--fault_at``, in the first attempt alone. Rank 0 then waits for it, as in a
collective. With ``--go_on FILE`` it waits at that step until there is such a file. The output
``starts.txt`` names the steps that the attempts started from.
"""

import argparse
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from trainjob.checkpoint_folder import Draft, Marker, complete_checkpoints
from trainjob.progress import report, should_stop

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
FOLDER = Path(os.environ["TRAINJOB_CHECKPOINT_DIR"])
OUT = Path(os.environ["TRAIN_URL"])
NUM_PRINTED_BYTES = int(os.environ.get("NUM_PRINTED_BYTES", "100_000_000"))
KIB = 1024


def main() -> None:
    args = parsed()
    fails = args.fault != "none" and not (FOLDER / "failed").exists()
    if fails and args.fault in ("collective", "leaves"):
        join_process_group()
    if RANK == 0:
        train(args, fails=fails)
    else:
        follow(args, fails=fails)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", default="none")
    parser.add_argument("--fault_at", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--step_s", type=float, default=0.0)
    parser.add_argument("--go_on", type=Path)
    return parser.parse_known_args()[0]


def train(args: argparse.Namespace, *, fails: bool) -> None:
    step = saved_step()
    with (OUT / "starts.txt").open("a") as file:
        file.write(f"{step}\n")
    while step < args.steps and not should_stop():
        time.sleep(args.step_s)
        step += 1
        save(step)
        report(step, total=args.steps, accuracy=step / args.steps)
        sys.stdout.write(f"step {step} loss = {1 / step}\n")
        if step == args.fault_at and args.go_on:
            wait_for(args.go_on)
        if fails and step == args.fault_at:
            fail(args.fault) if WORLD_SIZE == 1 else wait_for_the_others(args.fault)
    if should_stop() and saved_step() < step:
        save(step)
    (OUT / "model.txt").write_text(str(step))


def follow(args: argparse.Namespace, *, fails: bool) -> None:
    last = args.fault_at if fails else args.steps
    while saved_step() < last and not should_stop():
        time.sleep(0.02)
    if fails:
        fail(args.fault)


def fail(fault: str) -> None:
    (FOLDER / "failed").touch()
    sys.stdout.write("before\n")
    FAULTS[fault]()


def saved_step() -> int:
    complete, _ = complete_checkpoints(FOLDER)
    return complete[-1].marker.step if complete else 0


def save(step: int) -> None:
    draft = Draft(FOLDER, step)
    try:
        text = f"state of step {step}"
        (draft.path / "state.txt").write_text(text)
        marker = Marker(
            step=step,
            format="plain",
            files={"state.txt": len(text)},
            metrics={},
            world_size=WORLD_SIZE,
            run_id=None,
            torch="",
        )
        draft.complete(marker, keep_last=3, best=None)
    finally:
        draft.close()


def join_process_group() -> None:
    import torch.distributed as dist  # takes seconds: only where the collective is the point

    dist.init_process_group("gloo")


def wait_for_the_others(fault: str) -> None:
    if fault in ("collective", "leaves"):
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.ones(1))
    if fault in ("loader", "finalizes"):
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()
    if fault != "prints":
        wait_forever()


def wait_for(file: Path) -> None:
    while not file.exists() and not should_stop():
        time.sleep(0.05)


def wait_forever() -> None:
    while True:
        signal.pause()


def raise_error() -> None:
    raise ValueError("no such class")


def exit_3() -> None:
    sys.exit(3)


def crash() -> None:
    ctypes.string_at(0)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait_forever()


def leave() -> None:
    """Come to the end as if there were no step left."""


def leave_mpi() -> None:
    """Come to the end of the script, and wait in MPI_Finalize for the others."""
    from mpi4py import MPI

    assert MPI.Is_initialized()


def next_batch() -> None:
    """Wait for a loader whose worker has nothing to hand over."""
    from mpi4py import MPI  # or the others wait for this rank to join instead

    assert MPI.Is_initialized()
    batches: multiprocessing.Queue[int] = multiprocessing.Queue()
    worker = multiprocessing.Process(target=wait_forever, daemon=True)
    worker.start()
    batches.get()


def print_much() -> None:
    line = "x" * 1023 + "\n"
    for _ in range(NUM_PRINTED_BYTES // len(line)):
        sys.stdout.write(line)


def write_to_full_device() -> None:
    Path("/dev/full").write_text("x")


def fill_disk() -> None:
    with (OUT / "big.bin").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * KIB))


def kill_launcher() -> None:
    os.kill(ancestors()[-2], signal.SIGKILL)
    wait_forever()


def kill_supervisor() -> None:
    os.kill(ancestors()[-1], signal.SIGKILL)
    wait_forever()


def ancestors() -> list[int]:
    """Return the processes above this rank, the supervisor last and the launcher before it."""
    pids = [os.getppid()]
    while b"supervisor.py" not in Path(f"/proc/{pids[-1]}/cmdline").read_bytes():
        stat = Path(f"/proc/{pids[-1]}/stat").read_text()
        pids.append(int(stat.rpartition(")")[2].split()[1]))
    return pids


FAULTS: dict[str, Callable[[], None]] = {
    "raise": raise_error,
    "exit": exit_3,
    "sigsegv": crash,
    "sigkill": kill_itself,
    "deaf": ignore_sigterm,
    "collective": wait_forever,
    "loader": next_batch,
    "leaves": leave,
    "finalizes": leave_mpi,
    "prints": print_much,
    "dev-full": write_to_full_device,
    "disk": fill_disk,
    "launcher": kill_launcher,
    "supervisor": kill_supervisor,
    "wait": wait_forever,
}

if __name__ == "__main__":
    main()
