"""Slurm, by way of submitit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from pydantic import Field

from mtlcli.errors import MtlError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import launchers
from mtlcli.sweep.launchers.base import Job, Launcher, Watched, Work


@launchers.register("slurm")
class Slurm(Launcher):
    """A Slurm job a run. Their scripts and logs lie in the folder `slurm/` of the comparison.

    The nodes see the comparison's folder, and the data, under the same paths. A job that runs into its time limit or is
    preempted saves and is queued again.
    """

    package = "submitit"
    extra = "slurm"

    class Options(AnyOptions):
        """Options of Slurm."""

        partition: str | None = Field(None, description="Partition; null takes the cluster's default.")
        account: str | None = Field(None, description="Account to charge.")
        minutes: int = Field(240, ge=1, description="Time limit of a job.")
        cpus: int = Field(4, ge=1, description="CPUs of a job.")
        gpus: int = Field(0, ge=0, description="GPUs of a job.")
        memory_gb: int = Field(16, ge=1, description="Memory of a job in GB.")
        cluster: Literal["slurm", "local"] = Field("slurm", description="`local` runs the jobs here, to try it out.")

    @contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        """Find Slurm. Nothing is held: jobs live without this process."""
        import submitit

        chosen = self.options
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "slurm" / "%j", cluster=chosen.cluster)
        except Exception as error:  # no sbatch in the path
            raise MtlError(f"--launcher slurm: {error}; submit from a machine of the cluster") from None
        self._executor.update_parameters(
            name="mtl",
            timeout_min=chosen.minutes,
            cpus_per_task=chosen.cpus,
            gpus_per_node=chosen.gpus,
            mem_gb=chosen.memory_gb,
        )
        named = {"slurm_partition": chosen.partition, "slurm_account": chosen.account}
        self._executor.update_parameters(**{key: value for key, value in named.items() if value is not None})
        yield

    def start(self, work: Work) -> Job:
        """Submit the run."""
        return SlurmJob(self._executor.submit(Task(), work, str(Path.cwd())), Path(work.path))


class SlurmJob(Job):
    """A submitted job, watched through its run directory."""

    def __init__(self, job: Any, path: Path) -> None:
        self._job, self._watched = job, Watched(path)
        self._asked = False
        self._outcome: dict[str, Any] | None = None

    def news(self) -> dict[str, Any]:
        """From events.jsonl, and in the end from the job itself."""
        found = self._watched.news()
        if self._outcome is None and self._job.done():
            error = self._job.exception()
            if error is None:
                self._outcome = self._job.result()
            elif self._asked:
                self._outcome = {"status": "interrupted"}
            else:
                last = str(error).strip().splitlines()[-1]
                self._outcome = {"status": "failed", "error": f"its job {self._job.job_id} ended: {last}"}
            found |= self._outcome
        return found

    def ended(self) -> str | None:
        """None until the job is over."""
        return None if self._outcome is None else f"its job {self._job.job_id} ended"

    def stop(self) -> None:
        """Cancel it, upon which it saves and ends."""
        self._asked = True
        self._job.cancel(check=False)


class Task:
    """What a job runs. submitit queues it again where the job is preempted; the run directory says how far it is."""

    def __call__(self, work: Work, folder: str) -> dict[str, Any]:
        """On the node. At the signal that warns of its end, the run is saved before submitit queues the job again."""
        from submitit.core.job_environment import JobEnvironment

        from mtlcli.sweep import worker

        os.chdir(folder)
        warning = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
        queue_again: Any = signal.getsignal(warning)
        idle = signal.getsignal(signal.SIGTERM)  # another one listens while there is something to save
        warned = False

        def save_first(number: int, frame: FrameType | None) -> None:
            nonlocal warned
            if signal.getsignal(signal.SIGTERM) == idle:
                queue_again(number, frame)
            elif not warned:
                warned = True
                signal.raise_signal(signal.SIGTERM)

        if callable(queue_again):
            signal.signal(warning, save_first)
        outcome = worker.perform(work, "auto")
        if warned and outcome["status"] == "interrupted":
            queue_again(warning, None)
        return outcome

    def checkpoint(self, work: Work, folder: str) -> Any:
        """The same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, work, folder)
