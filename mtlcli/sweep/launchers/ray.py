"""Ray."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from mtlcli.errors import MtlError
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import launchers
from mtlcli.sweep.launchers.base import Job, Launcher, Watched, Work


@launchers.register("ray")
class Ray(Launcher):
    """A Ray task a run: on this machine, or on the cluster at `address`.

    Every node needs this package and sees the comparison's folder, and the data, under the same paths. A node that is
    lost costs its runs their steps since the last checkpoint: the same command goes on with them.
    """

    package = extra = "ray"

    class Options(AnyOptions):
        """Options of Ray."""

        address: str | None = Field(
            None, description="Of a running cluster, such as auto or ray://HOST:10001; without one, Ray starts here."
        )
        cpus: float = Field(1.0, gt=0, description="CPUs that a run reserves.")
        gpus: float | None = Field(
            None, ge=0, description="GPUs that a run reserves; 0.25 lets four share one; null: 1 where there are any."
        )

    @contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        """Connect, or start Ray on this machine, which then ends with the comparison."""
        import ray as module

        ray: Any = module  # its annotations are partial
        _reach(self.options.address)
        try:
            ray.init(
                address=self.options.address,
                include_dashboard=False if self.options.address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # Ray raises many kinds
            where = self.options.address or "this machine"
            raise MtlError(f"--launcher ray: cannot reach Ray at {where}: {error}") from None
        self._ray = ray
        gpus = self.options.gpus
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        # A process a run, so that the peak memory of one is not that of another.
        self._remote = ray.remote(num_cpus=self.options.cpus, num_gpus=gpus, max_retries=0, max_calls=1)(_work)
        try:
            yield
        finally:
            ray.shutdown()

    def start(self, work: Work) -> Job:
        """Queue the run; Ray starts it where there is room."""
        return RayJob(self._ray, self._remote.remote(work, str(Path.cwd())), Path(work.path))


def _reach(address: str | None) -> None:
    """Raise MtlError where nothing answers at `HOST:PORT` or `ray://HOST:PORT`; Ray itself tries for ten minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise MtlError(f"--launcher ray: cannot reach Ray at {address}: {error.strerror or error}") from None


class RayJob(Job):
    """A task, watched through its run directory."""

    def __init__(self, ray: Any, task: Any, path: Path) -> None:
        self._ray, self._task, self._watched = ray, task, Watched(path)
        self._outcome: dict[str, Any] | None = None

    def news(self) -> dict[str, Any]:
        """From events.jsonl, and in the end from the task itself."""
        found = self._watched.news()
        if self._outcome is None and self._ray.wait([self._task], timeout=0)[0]:
            try:
                self._outcome = self._ray.get(self._task)
            except self._ray.exceptions.TaskCancelledError:
                self._outcome = {"status": "interrupted"}
            except Exception as error:  # the node or the process is gone
                first = str(error).strip().splitlines()[0]
                self._outcome = {"status": "failed", "error": f"its Ray task ended: {first}"}
            found |= self._outcome
        return found

    def ended(self) -> str | None:
        """None until the task is over."""
        return None if self._outcome is None else "its Ray task ended"

    def stop(self) -> None:
        """Interrupt it, upon which it saves and ends."""
        self._ray.cancel(self._task)


def _work(work: Work, folder: str) -> dict[str, Any]:
    """In Ray's worker."""
    os.chdir(folder)
    from mtlcli.sweep.worker import perform

    return perform(work, "auto")
