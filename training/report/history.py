"""The table of epochs that a run leaves in its logs, read over all of its starts."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

LOGS = "logs"
"""Folder of the logs in the output folder; each start and each resume has a ``version_N`` in it."""


def read_history(output: Path) -> dict[str, np.ndarray]:
    """Columns of ``metrics.csv`` by name, one row for each epoch of the latest run in a folder; {} without any epoch.

    A resumed run writes a new table that begins at its first epoch, so that the rows before it come from the tables of
    earlier starts. The tables of runs that were overwritten are not used. A value that is missing is NaN.
    """
    versions = {}
    for folder in (output / LOGS).glob("version_*"):
        if number := re.fullmatch(r"version_(\d+)", folder.name):
            versions[int(number[1])] = folder / "metrics.csv"
    rows: list[dict[str, str]] = []
    for _, path in sorted(versions.items(), reverse=True):
        if rows and int(rows[0]["epoch"]) == 0:
            break
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                earlier = [row for row in csv.DictReader(file) if row.get("epoch")]
            first = int(rows[0]["epoch"]) if rows else None
            rows = [row for row in earlier if first is None or int(row["epoch"]) < first] + rows
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in names}
