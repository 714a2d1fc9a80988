"""Processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection as connections
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mtlcli.registry import launchers
from mtlcli.sweep.launchers.base import Job, Launcher, Work


@launchers.register("local")
class Local(Launcher):
    """A process a run, forked from a server that has imported everything once.

    CPU threads are divided among the jobs, GPUs go round.
    """

    @contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        """The server starts with the first job; in the end, what still runs is asked to end."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mtlcli.sweep.worker"])
        self._jobs: list[LocalJob] = []
        try:
            yield
        finally:
            for job in self._jobs:
                if job.ended() is None:
                    job.stop()

    def start(self, work: Work) -> Job:
        """Begin the run at once."""
        receiving, sending = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(work, sending))
        process.start()
        sending.close()
        job = LocalJob(receiving, process)
        self._jobs.append(job)
        return job

    def wait(self, jobs: Sequence[Job]) -> None:
        """Until one of them says something or ends, for a fifth of a second."""
        connections.wait([job.connection for job in jobs if isinstance(job, LocalJob)], timeout=0.2)


class LocalJob(Job):
    """A process, and the pipe it talks through."""

    def __init__(self, connection: Connection, process: BaseProcess) -> None:
        self.connection, self.process = connection, process

    def news(self) -> dict[str, Any]:
        """Everything that lies in the pipe."""
        found: dict[str, Any] = {}
        try:
            while not self.connection.closed and self.connection.poll():
                found |= self.connection.recv()
        except (EOFError, OSError):  # closed, perhaps in the middle of a message: the process is gone
            self.process.join()
            self.connection.close()
        return found

    def ended(self) -> str | None:
        """None until the pipe has closed."""
        if not self.connection.closed:
            return None
        code = self.process.exitcode
        if code == -signal.SIGTERM:
            return "interrupted"
        killed = " (killed: out of memory?)" if code == -signal.SIGKILL else ""
        return f"its process ended with exit code {code}{killed}"

    def stop(self) -> None:
        """SIGTERM, upon which it saves and ends."""
        self.process.terminate()


def _work(work: Work, parent: Connection) -> None:
    """In the process of its own: train, and tell the parent how it goes."""
    import torch

    from mtlcli.sweep.worker import perform

    # A group of its own: Ctrl-C reaches the parent alone, which then asks this process to save and end.
    os.setpgrp()
    begun = threading.Event()
    threading.Thread(target=_end_with_parent, args=(begun,), daemon=True).start()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the process's whole life
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0

    def tell(**message: Any) -> None:
        begun.set()
        with suppress(OSError):  # the parent is gone, and this process will be asked to save and end
            parent.send(message)

    try:
        outcome = perform(work, f"cuda:{work.slot % cards}" if cards else "cpu", tell)
        with suppress(OSError):
            parent.send(outcome)
    finally:
        parent.close()


def _end_with_parent(begun: threading.Event) -> None:
    """Ask this process to save and end once the one that started it is gone, however it went."""
    parent = parent_process()
    assert parent is not None
    connections.wait([parent.sentinel])
    # A second signal would end the training at once. Where the handler is gone although training began, the parent
    # itself has asked already.
    if not begun.is_set() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)
