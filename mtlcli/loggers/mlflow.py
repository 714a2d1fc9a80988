"""MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from mtlcli.loggers.base import Logger
from mtlcli.options import Options as AnyOptions
from mtlcli.registry import loggers
from mtlcli.runs import Run

PARAMS_AT_ONCE = 100  # MLflow takes no more in one call
LONGEST = 6000  # characters of a parameter's value


@loggers.register("mlflow")
class MLflow(Logger):
    """Record the run with an MLflow tracking server, or in a folder of files.

    A resumed run goes on under the same id, which run.json holds as `mlflow_run`.
    """

    package = extra = "mlflow"

    class Options(AnyOptions):
        """Options of MLflow."""

        uri: str | None = Field(
            None, description="Tracking server; null takes MLFLOW_TRACKING_URI, or else the folder mlruns/ by the runs."
        )
        experiment: str = Field("mtl", description="Experiment there.")

    def __init__(self, options: Any, run: Run, settings: Mapping[str, Any], step: int) -> None:
        uri = options.uri or os.environ.get("MLFLOW_TRACKING_URI") or (run.path.resolve().parent / "mlruns").as_uri()
        if uri.startswith("file:"):  # its newest versions ask for this, or refuse a folder of files
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=uri)
        known = run.info().get("mlflow_run")
        if known is not None:
            self._id = str(known)
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(options.experiment)
        made = experiment.experiment_id if experiment else self._client.create_experiment(options.experiment)
        self._id = self._client.create_run(made, run_name=run.path.name).info.run_id
        run.update_info(mlflow_run=self._id)
        params = [Param(key, str(value)[:LONGEST]) for key, value in settings.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[start : start + PARAMS_AT_ONCE])

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, status: str) -> None:
        """End the run there."""
        self._client.set_terminated(self._id, {"finished": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED"))
