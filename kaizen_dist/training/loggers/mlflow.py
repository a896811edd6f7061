"""MLflow: `log.to: [mlflow]`, with the extra `mlflow`.

Server and experiment are those of the environment (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from typing_extensions import override

from kaizen_dist.config.schema import Config, flatten
from kaizen_dist.training.loggers.base import Logger, Row, numbers, stored_id

_PARAMS = 100
"""MLflow takes so many in one request, ..."""
_LENGTH = 500
"""... and so many characters of each."""


class MLflow(Logger):
    """A run that is resumed or requeued goes on in the same MLflow run."""

    @override
    def begin(self, run: Path, config: Config) -> None:
        self._client = MlflowClient()
        self._id, new = stored_id(run, "mlflow", lambda: self._create(run.resolve().name))
        if new:
            params = [Param(k, str(v)[:_LENGTH]) for k, v in flatten(config.dump()).items()]
            for start in range(0, len(params), _PARAMS):
                self._client.log_batch(self._id, params=params[start : start + _PARAMS])
        self._client.update_run(self._id, status="RUNNING")
        logged = self._client.get_metric_history(self._id, "train/loss")
        self._last = max((metric.step for metric in logged), default=0)

    def _create(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "kaizen-dist")
        known = self._client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else self._client.create_experiment(experiment)
        return str(self._client.create_run(place, run_name=name).info.run_id)

    @override
    def row(self, row: Row, step: int) -> None:
        if step > self._last:
            self._log(numbers(row), step)

    @override
    def task(self, name: str, value: float, task: int) -> None:
        self._log({f"tasks/{name}": value}, task)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(k, v, now, step) for k, v in values.items()])

    @override
    def close(self) -> None:
        self._client.set_terminated(self._id)
