"""Make ``tests/data/upstream``: tiny checkpoints by older versions of upstream, with their own reference results.

    python tests/support/make_upstream_data.py [--all] [OUTPUT_FOLDER]

Each version is installed without dependencies into a scratch folder that goes first on ``PYTHONPATH``; PyTorch and the
rest are those of the running Python. ``--all`` covers every release in `RELEASES`, not only those whose files are
committed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
# nequip, nequip-allegro, e3nn, whether the files are committed
RELEASES = [
    ("0.7.0", "0.4.0", "0.5.9", True),
    ("0.7.1", "0.5.1", "0.5.9", True),
    ("0.8.0", "0.6.0", "0.5.9", False),
    ("0.9.0", "0.6.1", "0.5.9", False),
    ("0.9.1", "0.6.2", "0.5.9", False),
    ("0.10.0", "0.6.3", "0.5.9", False),
    ("0.11.0", "0.6.3", "0.5.9", False),
    ("0.11.1", "0.6.3", "0.5.9", False),
    ("0.12.0", "0.6.3", "0.5.9", False),
    ("0.12.1", "0.6.3", "0.5.9", True),
    ("0.13.0", "0.7.0", "0.5.9", False),
    ("0.14.0", "0.7.0", "0.5.9", False),
    ("0.15.0", "0.7.1", "0.5.9", True),
    ("0.16.0", "0.8.0", "0.5.9", False),
    ("0.16.1", "0.8.0", "0.5.9", False),
    ("0.16.2", "0.8.1", "0.5.9", True),
    ("0.17.0", "0.8.1", "0.6.0", False),
    ("0.17.1", "0.8.2", "0.6.0", False),
    ("0.18.0", "0.8.2", "0.6.0", False),
    ("0.19.0", "0.8.3", "0.6.0", False),
]


def make(nequip: str, allegro: str, e3nn: str, target: Path, scratch: Path) -> None:
    """Train both kinds of model with one pair of releases and keep checkpoints and references."""
    packages = [f"nequip=={nequip}", f"nequip-allegro=={allegro}", f"e3nn=={e3nn}"]
    site, work = scratch / "site", scratch / "work"
    shutil.rmtree(scratch, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, *packages], check=True)
    cases = ["allegro_0_4" if allegro.startswith("0.4.") else "allegro", "nequip_order"]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE / "upstream_train.py", work, *cases]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    target.mkdir(parents=True, exist_ok=True)
    for case in cases:
        name = f"nequip-{nequip}_allegro-{allegro}_{case.split('_')[0]}"
        for suffix in (".ckpt", ".json"):
            shutil.copy(work / f"{case}{suffix}", target / f"{name}{suffix}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE.parent / "data" / "upstream")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        for nequip, allegro, e3nn, committed in RELEASES:
            if committed or arguments.all:
                make(nequip, allegro, e3nn, arguments.folder.resolve(), Path(scratch) / "run")
                print(f"nequip {nequip}, nequip-allegro {allegro}", flush=True)


if __name__ == "__main__":
    main()
