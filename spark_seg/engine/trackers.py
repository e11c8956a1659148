"""What a run logs, in TensorBoard, Weights & Biases and MLflow.

mmengine's visualization backends are not used: its TensorBoard one begins a new run in every resumption and keeps the
events of steps that are made again, its W&B one drops the step, its MLflow one begins a new run and refuses a config
that changed. Here a run that is taken up goes on in the run that it was: same event folder, same id.
"""

import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from spark_seg.atomic import write_bytes
from spark_seg.errors import UserError, nearest

_IDS = "trackers.json"
WANDB_KEYS = [
    *("project", "entity", "name", "group", "job_type", "tags", "notes", "mode", "dir"),
    *("id", "settings", "save_code", "anonymous"),
]
MLFLOW_KEYS = ["tracking_uri", "experiment_name", "run_name", "tags"]


class Tracker(Protocol):
    """Somewhere to show a run's values."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes flat values at an optimizer step."""

    def close(self, status: str) -> None:
        """Ends it: `finished`, `interrupted` (will be taken up) or `failed`."""


def check_trackers(
    wandb: Mapping[str, Any] | None, mlflow: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    """What stands in the way of the trackers that a config asks for: pairs of its key and one line."""
    found = []
    for name, given, keys in (("wandb", wandb, WANDB_KEYS), ("mlflow", mlflow, MLFLOW_KEYS)):
        if given is None:
            continue
        for key in given:
            if key not in keys:
                found.append((name, f"{name} takes no key {key!r}{nearest(key, keys)}"))
        if importlib.util.find_spec(name) is None:
            found.append(
                (name, f"{name} is set but not installed: pip install {name}, or {name}=None")
            )
    return found


def open_trackers(
    folder: Path,
    step: int,
    resumed: bool,
    params: Mapping[str, Any],
    tensorboard: bool = True,
    wandb: Mapping[str, Any] | None = None,
    mlflow: Mapping[str, Any] | None = None,
) -> tuple[list[Tracker], list[str]]:
    """Opens those that are asked for; to be called by one process of a run.

    Args:
        folder: The run's work folder; `trackers.json` in it keeps the runs' ids.
        step: Optimizer steps finished already.
        resumed: Whether the run goes on.
        params: The config, nested plain types.
        tensorboard: Event files in `<folder>/tensorboard`.
        wandb: Arguments of `wandb.init`, or None for no W&B.
        mlflow: `tracking_uri` (default: `<folder>/mlruns.db`), `experiment_name`, `run_name`, `tags`, or None.

    Returns:
        The trackers, and lines that tell what is missing.

    Raises:
        UserError: A package that the config asks for is not there, or its server cannot be reached.
    """
    for _, problem in check_trackers(wandb, mlflow):
        raise UserError(problem)
    ids = _read_ids(folder) if resumed else {}
    trackers: list[Tracker] = []
    notes = []
    if tensorboard:
        if importlib.util.find_spec("tensorboard") is None:
            notes.append("no TensorBoard files: pip install tensorboard, or tensorboard=False")
        else:
            trackers.append(TensorBoard(folder / "tensorboard", step + 1 if resumed else None))
    # what a server or its client may raise is beyond listing
    for name, given, opened in (("wandb", wandb, Wandb), ("mlflow", mlflow, Mlflow)):
        if given is None:
            continue
        try:
            tracker = opened(folder, dict(given), params, ids.get(name))
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{name} could not be started: {line}") from error
        ids[name] = tracker.id
        trackers.append(tracker)
    if ids:
        write_bytes(folder / _IDS, (json.dumps(ids) + "\n").encode())
    return trackers, notes


def _read_ids(folder: Path) -> dict[str, str]:
    try:
        ids = json.loads((folder / _IDS).read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return {str(k): str(v) for k, v in ids.items()} if isinstance(ids, dict) else {}


class TensorBoard:
    """Event files.

    Args:
        folder: Where they go.
        purge: The first step of a run that is taken up: what a killed one logged from there on is hidden.
    """

    def __init__(self, folder: Path, purge: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self, status: str) -> None:
        """See `Tracker`."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases.

    Args:
        folder: The run's work folder.
        given: Arguments of `wandb.init`; without `name` it is the folder's.
        params: The config.
        run_id: Of the run to go on with.
    """

    def __init__(
        self, folder: Path, given: dict[str, Any], params: Mapping[str, Any], run_id: str | None
    ) -> None:
        import wandb

        given = {"name": folder.name, "dir": str(folder), **given}
        if run_id is not None:
            given |= {"id": run_id, "resume": "allow"}
        self._run: Any = wandb.init(**given)
        self._run.config.update(dict(params), allow_val_change=True)
        self.id = str(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`; W&B itself leaves out steps that it has had."""
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


class Mlflow:
    """A run of MLflow.

    Args:
        folder: The run's work folder.
        given: See `open_trackers`.
        params: The config; its values at the top level become the run's parameters.
        run_id: Of the run to go on with.
    """

    def __init__(
        self, folder: Path, given: dict[str, Any], params: Mapping[str, Any], run_id: str | None
    ) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        folder = folder.resolve()
        uri = given.get("tracking_uri") or f"sqlite:///{folder / 'mlruns.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        if run_id is not None:
            self.id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        name = given.get("experiment_name") or "spark_seg"
        experiment = self._client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = self._client.create_run(
            where, run_name=given.get("run_name") or folder.name, tags=given.get("tags") or {}
        )
        self.id = run.info.run_id
        plain = [
            Param(key, str(value))
            for key, value in params.items()
            if not isinstance(value, dict | list) and len(str(value)) < 500
        ]
        self._client.log_batch(self.id, params=plain[:100])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        now = round(time.time() * 1000)
        metrics = [self._metric(key, value, now, step) for key, value in values.items()]
        for begin in range(0, len(metrics), 1000):  # the most that a batch may hold
            self._client.log_batch(self.id, metrics=metrics[begin : begin + 1000])

    def close(self, status: str) -> None:
        """See `Tracker`."""
        names = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self.id, names[status])
