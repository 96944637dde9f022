"""The file of a study."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic reads it
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]*$")]
Value = str | int | float | bool


class Method(BaseModel):
    """How a method is run: `python -m MODULE train --out RUN --task TASK --seed SEED`, and these options.

    Attributes:
        module: of this package, as `finetune.tmrl`.
        title: in tables and plots; the method's name when left out.
        options: names without dashes in front; `true` is a flag.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: Annotated[str, StringConstraints(pattern=r"^finetune\.[a-z_.]+$")]
    title: str = ""
    options: dict[str, Value] = {}


class Study(BaseModel):
    """Methods, tasks and seeds, all combined.

    Attributes:
        title: of the plot. `out`: folder of the runs.
        tasks: names to tasks as `finetune.common.environments.registry` reads them.
        metric: of the runs' metrics, from 0 to 1 a success rate; `also`: others, each with its own table and plot.
        over: the axis, `env_steps` or `step`.
        reached: level whose first crossing is told in the table.
        last: share of each curve, from its end, whose mean is the result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    out: Path
    seeds: Annotated[list[int], Field(min_length=1)]
    tasks: Annotated[dict[Name, str], Field(min_length=1)]
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    metric: str = "success"
    also: list[Name] = []
    over: str = "env_steps"
    reached: float = 0.9
    last: Annotated[float, Field(gt=0, le=1)] = 0.25

    def cells(self) -> list[Cell]:
        """Return every run of the study, seed by seed, so that a study that is stopped has whole comparisons."""
        return [
            Cell(method=method, task=task, seed=seed, folder=self.out / f"{task}-{method}-{seed}")
            for seed in self.seeds
            for task in self.tasks
            for method in self.methods
        ]

    def command(self, cell: Cell) -> list[str]:
        """Return a run's module and arguments."""
        method = self.methods[cell.method]
        given: dict[str, Value] = {"out": str(cell.folder), "task": self.tasks[cell.task], "seed": cell.seed}
        words = [method.module, "train"]
        for name, value in {**given, **method.options}.items():
            if value is not False:
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words


class Cell(BaseModel):
    """One run of a study."""

    model_config = ConfigDict(frozen=True)

    method: str
    task: str
    seed: int
    folder: Path


def read_study(path: Path) -> Study:
    """Read a study's file.

    Raises:
        ValueError: naming what is wrong with it.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text("utf-8"))
        return Study.model_validate(raw)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path.name}: {where}: {first['msg']}") from error
