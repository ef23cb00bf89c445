"""The batch engine on PySpark (extra `[spark]`): the same model and numbers, compared by Spark's workers."""

from __future__ import annotations

from pathlib import Path

from hie.mpi.batch import Linkage, Progress
from hie.mpi.model import Model


def link_file(source: Path, target: Path, model: Model | None, progress: Progress = lambda _: None) -> Linkage:
    raise NotImplementedError
