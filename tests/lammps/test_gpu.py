"""LAMMPS on a GPU has the results of the CPU in float64, for all ways in which the engine can evaluate."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from test_guard import PAIR
from test_isolated import ATOMS, DIMER, GAS, counts
from test_models import DENSE

from support.artifacts import with_metadata
from support.engine import (
    BAD_INPUT,
    GPU_MEMORY,
    HOST_MEMORY,
    OK,
    Results,
    System,
    c_array,
    load_model,
    open_engine,
)
from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import NATIVE, SYSTEMS, nequip
from support.structures import triclinic_crystal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
TOLERANCE = {"fp64": 1e-9, "fp32": 3e-5, "tf32": 1e-2}
WAYS = {
    "default": "",
    "lists of LAMMPS": "neighbors lammps",
    "not recorded": "replay no",
    "pieces": "max_edges 300",
    "pieces, lists of LAMMPS": "max_edges 300 neighbors lammps",
}
MOTION = """
velocity all create 300 87287 loop geom
timestep 0.0005
neighbor 0.4 bin
neigh_modify every 1 delay 0 check yes
fix move all nve
thermo 20
thermo_modify format float %.12g
run 60
"""


@pytest.fixture(scope="session")
def gpu_models(small_models, tmp_path_factory):
    """``gpu_models("allegro_fp32")``: the artifact of a model of ``small_models``, compiled for CUDA."""
    from nequip_md.export import export_checkpoint

    folder = tmp_path_factory.mktemp("cuda")

    def make(name: str) -> Path:
        kind, precision = name.split("_")
        path = folder / f"{name}.pt2"
        if not path.exists():
            checkpoint, _ = small_models(f"{kind}_fp64")  # the same weights for every precision
            export_checkpoint(checkpoint, path, device="cuda", precision=precision)
        return path

    return make


def measured_thrice(key: str) -> str:
    """Evaluate three times, with a small move of every atom after the first; the last evaluation replays a recording."""
    head, record = measurement(key + "_0").split("run 0", 1)
    lines = head + "run 0" + record
    for k in (1, 2):
        lines += f"displace_atoms all random 0.01 0.01 0.01 {4710 + k} units box\nrun 0" + record.replace(
            f"{key}_0", f"{key}_{k}"
        )
    return lines


@pytest.fixture(scope="session")
def on_cpu(small_models, plugin_folder, tmp_path_factory):
    """Numbers of the float64 artifact on the CPU, by kind of model, with the systems' keys."""
    folder = tmp_path_factory.mktemp("cpu")
    made: dict[str, dict] = {}

    def measure(kind: str) -> dict:
        if kind not in made:
            _, artifact = small_models(f"{kind}_fp64")
            script = "clear\n".join(
                system.start(folder / key[:3]) + nequip(artifact, "H O") + measured_thrice(key[:3])
                for key, system in DENSE.items()
            )
            outcome = run_lammps(script, folder)
            assert outcome.status == 0, outcome.text
            made[kind] = {
                f"{key[:3]}_{k}": read_measurement(folder, f"{key[:3]}_{k}") for key in DENSE for k in range(3)
            }
        return made[kind]

    return measure


CASES = [(name, 1, way) for name in ("allegro_fp64", "allegro_fp32") for way in WAYS]
CASES += [("allegro_fp64", 2, "default"), ("allegro_fp32", 2, "pieces"), ("allegro_tf32", 1, "default")]
CASES += [("nequip_fp64", 1, "default"), ("nequip_fp64", 1, "lists of LAMMPS")]


@pytest.mark.parametrize("name, ranks, way", CASES)
def test_gpu_equals_cpu(name, ranks, way, gpu_models, on_cpu, tmp_path):
    kind, precision = name.split("_")
    script = "clear\n".join(
        system.start(tmp_path / key[:3])
        + nequip(gpu_models(name), "H O", keywords=WAYS[way])
        + measured_thrice(key[:3])
        for key, system in DENSE.items()
    )
    outcome = run_lammps(script, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    for key, reference in on_cpu(kind).items():
        ours = read_measurement(tmp_path, key)
        for quantity in ("energy", "pressure", "forces", "energies", "virials", "centroid"):
            value = reference[quantity]
            np.testing.assert_allclose(
                ours[quantity],
                value,
                rtol=0,
                atol=TOLERANCE[precision] * np.abs(value).max(),
                err_msg=f"{key} {quantity}",
            )


@pytest.mark.parametrize("kind", ["allegro", "nequip"])
def test_isolated_energies(kind, gpu_models, small_models, plugin_folder, tmp_path):
    """Energies without those of isolated atoms, which the compiled model evaluates on its own device."""
    system = DENSE["triclinic"]
    for run, artifact in (("cpu", small_models(f"{kind}_fp64")[1]), ("gpu", gpu_models(f"{kind}_fp64"))):
        script = system.start(tmp_path) + nequip(artifact, "H O", keywords="isolated no") + measurement(run)
        outcome = run_lammps(script, tmp_path)
        assert outcome.status == 0, outcome.text
    cpu, gpu = read_measurement(tmp_path, "cpu"), read_measurement(tmp_path, "gpu")
    for quantity in ("energy", "energies", "forces"):
        np.testing.assert_allclose(gpu[quantity], cpu[quantity], rtol=0, atol=1e-9 * np.abs(cpu[quantity]).max())


@pytest.mark.parametrize("way", ["default", "not recorded", "lists of LAMMPS"])
def test_trajectory(way, gpu_models, small_models, plugin_folder, tmp_path):
    """Sixty steps with rebuilt lists, float64: the same energies as on the CPU; and twice the same digits on the GPU."""
    texts = {}
    for run, artifact, keywords in (
        ("cpu", small_models("allegro_fp64")[1], ""),
        ("gpu", gpu_models("allegro_fp64"), WAYS[way]),
        ("again", gpu_models("allegro_fp64"), WAYS[way]),
    ):
        outcome = run_lammps(
            DENSE["triclinic"].start(tmp_path) + nequip(artifact, "H O", keywords=keywords) + MOTION, tmp_path
        )
        assert outcome.status == 0, outcome.text
        rows = [
            line.split() for line in outcome.text.splitlines() if line.split()[:1] in (["0"], ["20"], ["40"], ["60"])
        ]
        assert len(rows) == 4 and all(len(row) == 6 for row in rows), outcome.text
        texts[run] = rows
    assert texts["gpu"] == texts["again"]
    np.testing.assert_allclose(np.array(texts["gpu"], float), np.array(texts["cpu"], float), rtol=1e-7, atol=1e-7)


def test_forces_beyond_fixed_point(gpu_models, small_models, plugin_folder, tmp_path):
    """Two atoms 0.02 angstrom apart: thousands of eV/angstrom, the same as on the CPU."""
    system = SYSTEMS["one atom on each side"]
    for run, artifact in (("cpu", small_models("allegro_fp64")[1]), ("gpu", gpu_models("allegro_fp64"))):
        script = (
            system.start(tmp_path) + nequip(artifact, "H O") + "set atom 2 x 18.32\nset atom 2 y 10\nset atom 2 z 11\n"
        )
        outcome = run_lammps(script + measurement(run), tmp_path)
        assert outcome.status == 0, outcome.text
    cpu, gpu = read_measurement(tmp_path, "cpu"), read_measurement(tmp_path, "gpu")
    np.testing.assert_allclose(gpu["forces"], cpu["forces"], rtol=1e-9)


def test_out_of_memory_is_survived_or_said(gpu_models, plugin_folder, tmp_path):
    """If most of the GPU's memory is in use, pieces become smaller, and results stay the same."""
    script = (
        DENSE["triclinic"].start(tmp_path)
        + "replicate 12 12 12\n"
        + nequip(gpu_models("allegro_fp32"), "H O")
        + "compute counts all pair nequip\nthermo_style custom step pe c_counts[3]\n"
        "thermo_modify format float %.9g norm yes\nrun 2\n"
    )
    results = {}
    for run, left in (("free", None), ("full", 3 << 30)):
        free, _ = torch.cuda.mem_get_info()  # now: others may be on this GPU
        taken = None if left is None else torch.empty(free - left, dtype=torch.uint8, device="cuda")
        outcome = run_lammps(script, tmp_path)
        del taken
        torch.cuda.empty_cache()
        assert outcome.status == 0, outcome.text
        results[run] = [float(line.split()[1]) for line in outcome.text.splitlines() if line.split()[:1] == ["0"]][0]
    assert results["full"] == pytest.approx(results["free"], rel=1e-7)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_without_use_are_said(threads, gpu_models, plugin_folder, tmp_path):
    script = DENSE["triclinic"].start(tmp_path) + nequip(gpu_models("allegro_fp32"), "H O") + "run 0\n"
    outcome = run_lammps(script, tmp_path, threads=threads)
    assert outcome.status == 0, outcome.text
    assert ("set OMP_NUM_THREADS=1" in outcome.text) == (threads > 1)


@pytest.fixture(scope="session")
def lj_on_gpu(force_styles, plugin_folder, tmp_path_factory) -> Path:
    """The analytic artifact of ``lj_artifact``, compiled for CUDA."""
    from nequip_md.export import artifact_metadata, write_artifact

    style, path = force_styles["lj"], tmp_path_factory.mktemp("cuda_lj") / "lj.pt2"
    write_artifact(style.analytic_model(), path, artifact_metadata(**style.model["metadata"], device="cuda"), "cuda")
    return path


def test_grand_canonical(lj_on_gpu, tmp_path):
    """On a GPU the engine would search neighbours; fix gcmc excludes atoms from LAMMPS' lists, in the first run as in others."""
    script = GAS + NATIVE + ATOMS + "clear\n" + GAS + nequip(lj_on_gpu, keywords="isolated no") + ATOMS
    (tmp_path / "dimer.mol").write_text(DIMER)
    outcome = run_lammps(script, tmp_path)
    assert outcome.status == 0, outcome.text
    native, ours = (counts(part) for part in outcome.text.split("Pair style nequip:")[:2])
    assert len(native) > 3 and ours == native


@pytest.mark.parametrize("keywords", ["", "replay no", "neighbors lammps", "guard no"])
def test_guard(keywords, lj_on_gpu, tmp_path):
    """The device counts contacts that the training data does not have, in recorded evaluations as well."""
    model = with_metadata(lj_on_gpu, tmp_path / "known.pt2", closest_distances="3.2 3.0 3.0 0", largest_force="")
    moves = "run 0\ndisplace_atoms all move 0.1 0 0 units box\nrun 0\nset atom 2 x 29.6\nrun 0\nrun 0\n"
    start = PAIR.format(first=1, second=1, x=25.0, options=keywords, before="", model=model).partition("timestep")[0]
    outcome = run_lammps(start + moves, tmp_path)
    assert outcome.status == 0, outcome.text
    said = [line for line in outcome.text.splitlines() if "angstrom apart" in line]
    assert len(said) == (0 if keywords == "guard no" else 1)
    assert all("are 1.5 angstrom apart" in line for line in said)


def test_code_is_deleted_when_it_is_loaded(gpu_models, small_models, tmp_path, monkeypatch):
    """Kernels are loaded at the first evaluation, also those that only a larger one needs."""
    from nequip_md.calculators import NequIPMDCalculator

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for kind in ("allegro", "nequip"):
        calculators = [
            NequIPMDCalculator(path) for path in (gpu_models(f"{kind}_fp64"), small_models(f"{kind}_fp64")[1])
        ]
        crystal = bulk("H", "fcc", a=4.0, cubic=True)
        for atoms in (molecule("H2O"), crystal * 3, crystal * 8):
            atoms.symbols[::3] = "O"
            atoms.rattle(0.05, seed=1)
            forces = []
            for calculator in calculators:
                atoms.calc = calculator
                forces.append(atoms.get_forces())
                assert not list(tmp_path.iterdir()), "unpacked code"
            np.testing.assert_allclose(forces[0], forces[1], rtol=0, atol=1e-9 * np.abs(forces[1]).max())


class Arrays:
    """A system of ``support.structures`` for the engine, in host memory or on the GPU; ``evaluate`` may be called again."""

    QUANTITIES = {"forces": 3, "atom_energies": 1, "atom_virials": 6, "centroid_virials": 9}

    def __init__(self, library, path, structure, device: str, periodic: bool):
        self.library, self.device, self.periodic = library, device, periodic
        self.handle = load_model(library, path)
        assert not isinstance(self.handle, tuple), self.handle
        self.structure = structure.copy()
        names = library.nequip_md_metadata(self.handle, b"type_names").decode().split()
        types = [names.index(symbol) for symbol in structure.symbols]
        self.types = torch.tensor(types, dtype=torch.int32, device=device)
        self.stream = torch.cuda.Stream()

    def evaluate(self, lists_changed: int = 1) -> dict[str, np.ndarray]:
        """Results by name; the arrays begin at 1, as results are added to them."""
        count = len(self.structure)
        on_gpu = self.device == "cuda"
        with torch.cuda.stream(self.stream):
            # slow work of the caller's stream, which positions wait for
            positions = torch.tensor(self.structure.positions, device=self.device)
            if on_gpu:
                right, large = positions, torch.ones(4000, 4000, device="cuda")
                positions = torch.full_like(right, 1e3)
                for _ in range(20):
                    large = large @ large * 1e-4
                positions.copy_(right)
            values = {
                name: torch.ones(count, width, dtype=torch.float64, device=self.device)
                for name, width in self.QUANTITIES.items()
            }
        address = {
            name: ctypes.cast(array.data_ptr(), ctypes.POINTER(ctypes.c_double)) for name, array in values.items()
        }
        integers = ctypes.POINTER(ctypes.c_int)
        system = System(
            num_all=count,
            positions=ctypes.cast(positions.data_ptr(), ctypes.POINTER(ctypes.c_double)),
            types=ctypes.cast(self.types.data_ptr(), integers),
            num_caller_types=2,
            type_map=c_array([0, 1], ctypes.c_int),
            num_centres=count,
            skin=0.5,
            lists_changed=lists_changed,
            memory=GPU_MEMORY if on_gpu else HOST_MEMORY,
            stream=self.stream.cuda_stream,
        )
        if self.periodic:
            system.cell = c_array(self.structure.cell[:].ravel(), ctypes.c_double)
            system.periodic[:] = [int(along) for along in self.structure.pbc]
        else:  # of models with message passing
            system.owner = c_array(range(count), ctypes.c_int)
        results = Results(**address)
        status = self.library.nequip_md_evaluate(self.handle, ctypes.byref(system), ctypes.byref(results))
        assert status == OK, self.library.nequip_md_last_error(self.handle)
        with torch.cuda.stream(self.stream):  # in whose order the sums were made
            found = {name: array.cpu().numpy() - 1 for name, array in values.items()}
        self.replayed = results.replayed
        return {"energy": np.array(results.energy), "virial": np.array(results.virial), **found}


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("kind", ["allegro", "nequip"])
def test_arrays_on_the_gpu(kind, periodic, gpu_models, small_models, plugin_folder):
    """Compare arrays on the GPU with arrays on the host and with the CPU, with old and new lists, with and without recording."""
    library = open_engine(plugin_folder)
    structure = triclinic_crystal(repeat=(2, 2, 2))
    ways = [
        Arrays(library, path, structure, device, periodic)
        for path, device in (
            (gpu_models(f"{kind}_fp64"), "cuda"),
            (gpu_models(f"{kind}_fp64"), "cpu"),
            (small_models(f"{kind}_fp64")[1], "cpu"),
        )
    ]
    rng = np.random.default_rng(4)
    replayed = 0
    for lists_changed in (1, 0, 0, 0, 1, 0):
        moves = rng.uniform(-0.03, 0.03, structure.positions.shape)
        outcomes = []
        for way in ways:
            way.structure.positions += moves
            outcomes.append(way.evaluate(lists_changed))
        replayed += ways[0].replayed
        for quantity, value in outcomes[-1].items():
            assert np.abs(value).max() > 1e-3
            for ours in outcomes[:-1]:
                np.testing.assert_allclose(
                    ours[quantity], value, rtol=0, atol=1e-9 * np.abs(value).max(), err_msg=quantity
                )
    assert replayed > 0 or kind == "nequip"
    for way in ways:
        library.nequip_md_free(way.handle)


BAD_ON_GPU = {  # what is wrong with positions, types or forces, and words of the message
    "positions of the host": ("positions", lambda tensor: tensor.cpu(), "memory says that positions lies on the GPU"),
    "types of the host": ("types", lambda tensor: tensor.cpu(), "memory says that types lies on the GPU"),
    "forces of the host": ("forces", lambda tensor: tensor.cpu(), "memory says that forces lies on the GPU"),
    "NaN": ("positions", lambda tensor: tensor * float("nan"), "the position of an atom is not finite"),
    "other types": ("types", lambda tensor: tensor + 7, "lies outside type_map"),
}


@pytest.mark.parametrize("case", BAD_ON_GPU)
def test_bad_arrays_on_the_gpu(case, gpu_models, plugin_folder):
    which, spoil, words = BAD_ON_GPU[case]
    library = open_engine(plugin_folder)
    handle = load_model(library, gpu_models("allegro_fp64"))
    tensors = {
        "positions": torch.rand(8, 3, dtype=torch.float64, device="cuda") * 6,
        "types": torch.zeros(8, dtype=torch.int32, device="cuda"),
        "forces": torch.zeros(8, 3, dtype=torch.float64, device="cuda"),
    }
    tensors[which] = spoil(tensors[which])
    torch.cuda.synchronize()
    pointer = {name: ctypes.c_void_p(tensor.data_ptr()) for name, tensor in tensors.items()}
    system = System(
        num_all=8,
        positions=ctypes.cast(pointer["positions"], ctypes.POINTER(ctypes.c_double)),
        types=ctypes.cast(pointer["types"], ctypes.POINTER(ctypes.c_int)),
        num_caller_types=1,
        type_map=c_array([0], ctypes.c_int),
        num_centres=8,
        memory=GPU_MEMORY,
    )
    results = Results(forces=ctypes.cast(pointer["forces"], ctypes.POINTER(ctypes.c_double)))
    assert library.nequip_md_evaluate(handle, ctypes.byref(system), ctypes.byref(results)) == BAD_INPUT
    assert words in library.nequip_md_last_error(handle).decode()
    library.nequip_md_free(handle)
