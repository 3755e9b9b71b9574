"""``nequip-md-bench``: its structures, its two engines on small artifacts, its files and its refusals. No times are asserted."""

from __future__ import annotations

import json
import sys

import ase.io
import numpy as np
import pytest
import torch

import nequip_md.lammps
from nequip_md.artifact import load_artifact
from nequip_md.bench import peer
from nequip_md.bench.cli import parser
from nequip_md.bench.compilation import preset_config
from nequip_md.bench.lammps_run import boundary, parse_output, write_data
from nequip_md.bench.measure import failure_of, time_alternately
from nequip_md.bench.run import BenchOptions, bench, threads_per_rank
from nequip_md.bench.structures import octanal, read_structure, repeated, systems, water_box
from nequip_md.checkpoint import save
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph
from nequip_md.model import AllegroConfig, NequIPConfig, build_model
from nequip_md.model.config import ALLEGRO_PRESETS, NEQUIP_PRESETS
from support.lammps_run import run_lammps
from support.structures import single_atom, slab, small_molecule, triclinic_crystal
from support.structures import water_box as reference_water


def run(*arguments) -> list:
    return bench(BenchOptions(**vars(parser().parse_args([str(a) for a in arguments]))))


@pytest.mark.parametrize(("size", "atoms"), [(1, 3), (24, 24), (50, 24), (60, 81), (192, 192), (1500, 1536)])
def test_water_has_the_nearest_size_and_the_density(size, atoms):
    box = water_box(size)
    assert len(box) == atoms and box.symbols.get_chemical_formula() == f"H{2 * atoms // 3}O{atoms // 3}".replace(
        "O1", "O"
    )
    assert box.get_masses().sum() / 0.602214076 / box.get_volume() == pytest.approx(0.997, rel=1e-9)


def test_water_is_made_of_separate_molecules_in_all_orientations():
    box = water_box(1536)
    molecules = box.positions.reshape(-1, 3, 3)
    bonds = molecules[:, 1:] - molecules[:, :1]
    np.testing.assert_allclose(np.linalg.norm(bonds, axis=2), 0.9572, rtol=1e-9)
    np.testing.assert_allclose(np.degrees(np.arccos((bonds[:, 0] * bonds[:, 1]).sum(1) / 0.9572**2)), 104.52, rtol=1e-9)
    directions = bonds.sum(1) / np.linalg.norm(bonds.sum(1), axis=1, keepdims=True)
    np.testing.assert_allclose(directions.T @ directions / len(directions), np.eye(3) / 3, atol=0.06)
    graph = build_graph(Structure.from_ase(box, ["H", "O"]), 3.0)
    other = (graph.edge_index[0] // 3 != graph.edge_index[1] // 3) | (graph.edge_vectors.norm(dim=1) > 2)
    assert graph.edge_vectors[other].norm(dim=1).min() > 0.7
    assert build_graph(Structure.from_ase(box, ["H", "O"]), 6.0).num_edges / len(box) == pytest.approx(
        build_graph(Structure.from_ase(reference_water(8), ["H", "O"]), 6.0).num_edges / len(box), rel=0.02
    )


def test_water_follows_from_its_seed():
    assert (water_box(192, seed=3).positions == water_box(192, seed=3).positions).all()
    assert (water_box(192, seed=3).positions != water_box(192, seed=4).positions).all()


def test_structures_are_repeated_and_never_cut():
    crystal = triclinic_crystal()
    for size in (1, 16, 17, 100):
        larger = repeated(crystal, size)
        assert len(larger) >= size and len(larger) % len(crystal) == 0
        assert larger.get_volume() / len(larger) == pytest.approx(crystal.get_volume() / len(crystal))
    assert [len(box) for box in systems([200, 24, 190], None)] == [24, 192]


@pytest.mark.parametrize(
    "threads, ranks, device, expected",
    [(8, 2, "cpu", 4), (8, 2, "cuda", 4), (None, 1, "cuda", 1), (None, 4, "cuda", 1), (2, 3, "cpu", 1)],
)
def test_ranks_share_threads_and_need_one_on_a_gpu(threads, ranks, device, expected):
    assert threads_per_rank(threads, ranks, device) == expected


@pytest.mark.parametrize("name", ["allegro_fp32", "nequip_fp64"])
def test_both_engines_and_all_files(name, small_models, tmp_path):
    _, path = small_models(name)
    artifact = load_artifact(path)
    rows = run(
        path,
        "--sizes",
        81,
        20,
        "--engine",
        "graph",
        "lammps",
        "--repeats",
        2,
        "--steps",
        3,
        "--threads",
        1,
        "--output",
        tmp_path / "r.json",
        "--plot",
        tmp_path / "p.png",
    )
    assert [(row.engine, row.atoms) for row in rows] == [("graph", 24), ("lammps", 24), ("graph", 81), ("lammps", 81)]
    for row in rows:
        edges = build_graph(
            Structure.from_ase(water_box(row.atoms), artifact.type_names), artifact.pair_cutoffs
        ).num_edges
        assert row.edges_per_atom == edges / row.atoms and row.precision == name[-4:] and row.error is None
        assert row.ms_per_step * 1e3 == pytest.approx(row.us_per_atom_step * row.atoms)
        assert row.ms_per_step * row.steps_per_s == pytest.approx(1e3)
        assert row.engine == "graph" or 0 < row.pair_ms_per_step <= row.ms_per_step
    written = json.loads((tmp_path / "r.json").read_text())
    assert [row["ms_per_step"] for row in written["rows"]] == [row.ms_per_step for row in rows]
    assert written["machine"]["torch"] == torch.__version__ and written["model"] == str(path)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def tilted_open(axis: int):
    """Periodic in two directions that are not normal to each other; the third cell vector is not normal to them."""
    crystal = triclinic_crystal()
    crystal.pbc = [k != axis for k in range(3)]
    return crystal


@pytest.mark.parametrize(
    "atoms",
    [
        triclinic_crystal(),
        slab(),
        tilted_open(0),
        tilted_open(1),
        tilted_open(2),
        single_atom("O"),
        reference_water(1)[:3],
    ],
    ids=["crystal", "slab", "yz", "xz", "xy", "atom", "water"],
)
def test_lammps_reads_the_same_system(atoms, small_models, tmp_path):
    """Triclinic and open boxes, types in the model's order: LAMMPS' energy is the artifact's, also after some steps."""
    _, path = small_models("allegro_fp64")
    artifact = load_artifact(path)
    write_data(tmp_path / "box.data", atoms, artifact.type_names)
    nequip_md.lammps.build()
    outcome = run_lammps(
        f"""units metal\nboundary {boundary(atoms)}\nbox tilt large\nread_data box.data\npair_style nequip
pair_coeff * * "{path}" H O\nrun 0\nprint "energy $(pe:%.12g) mass $(mass(all):%.12g)"\nvelocity all set 40 50 60\nfix 1 all nve
run 20\nprint "count $(atoms)"\n""",
        tmp_path,
    )
    assert outcome.status == 0 and outcome.text.count(f"count {len(atoms)}\n") == 1, outcome.text
    energy, mass = (float(word) for word in outcome.text.rsplit("\nenergy ", 1)[1].split()[0:3:2])
    graph = build_graph(Structure.from_ase(atoms, artifact.type_names), artifact.pair_cutoffs)
    assert energy == pytest.approx(artifact(graph)[0].sum().item(), abs=1e-7)
    assert mass == pytest.approx(atoms.get_masses().sum())


DATA_FILE = """LAMMPS data file via write_data

3 atoms
2 atom types

-1 9 xlo xhi
0 11 ylo yhi
0 12 zlo zhi

Masses

1 15.999
2 1.008

Atoms # full/kk

3 7 2 0 1.5 1.2 1 0 0 1
1 7 1 0 0.5 1 1 0 0 0
2 7 2 0 8.75 2 1 -1 0 0

Velocities

1 0 0 0
2 0 0 0
3 0 0 0
"""


def test_data_files_of_lammps(tmp_path):
    (tmp_path / "some.data").write_text(DATA_FILE)
    atoms = read_structure(tmp_path / "some.data")
    assert atoms.get_chemical_symbols() == ["O", "H", "H"] and atoms.pbc.all()
    np.testing.assert_allclose(atoms.cell[:], np.diag([10, 11, 12]))
    vectors = atoms.get_distances(0, [1, 2], mic=True, vector=True)
    np.testing.assert_allclose(vectors, [[-1.75, 1, 0], [1, 0.2, 0]], atol=1e-12)


def test_octanal_is_one_sane_molecule():
    molecule = octanal()
    assert molecule.get_chemical_formula() == "C8H16O" and not molecule.pbc.any()
    distances = molecule.get_all_distances() + 9 * np.eye(25)
    bonds = (distances < 1.6).sum(1)
    assert [set(bonds[molecule.symbols == symbol]) for symbol in "CHO"] == [{3, 4}, {1}, {1}] and list(bonds).count(
        3
    ) == 1
    assert distances[distances > 1.6].min() > 1.7


def test_the_last_timing_of_lammps_counts():
    text = """Loop time of 9 on 1 procs for 5 steps with 24 atoms
Loop time of 0.5 on 2 procs for 20 steps with 24 atoms
Pair    | 0.1        | 0.4        | 0.5        |   0.0 | 80.00
"""
    assert parse_output(text) == (0.5 / 20, 0.4 / 20)
    with pytest.raises(NequIPMDError, match="without reporting.*\nERROR: no luck"):
        parse_output("ERROR: no luck")


def test_a_failure_leaves_the_others():
    count = 0

    def fails_later():
        nonlocal count
        count += 1
        if count > 4:
            raise MemoryError

    def fails():
        raise RuntimeError("run_func_(...) API call failed\nat some line")

    results = time_alternately({"good": lambda: None, "late": fails_later, "bad": fails}, "cpu", 3)
    assert results["late"] == "out of memory" and results["bad"] == "run_func_(...) API call failed"
    seconds, memory = results["good"]
    assert seconds > 0 and memory is None

    def refuses():
        raise NequIPMDError("bad input")

    with pytest.raises(NequIPMDError):
        failure_of(refuses)


def test_bad_input_is_named(small_models, tmp_path, monkeypatch):
    checkpoint, artifact = small_models("allegro_fp32")
    ase.io.write(tmp_path / "ethanol.xyz", small_molecule())
    (tmp_path / "massless.data").write_text(DATA_FILE.replace("Masses\n\n1 15.999\n2 1.008\n", ""))
    cases = [
        ("neither a file nor a preset", "huge"),
        ("no type for C; its types are H, O", artifact, "--structure", tmp_path / "ethanol.xyz", "--sizes", 9),
        ("cannot be repeated", artifact, "--structure", tmp_path / "ethanol.xyz", "--sizes", 10),
        ("ASE cannot read", artifact, "--structure", tmp_path / "none.xyz"),
        ("without a section Masses", artifact, "--structure", tmp_path / "massless.data"),
        ("give its checkpoint", artifact, "--precision", "fp64"),
        ("give its checkpoint", artifact, "--peer"),
        ("engine graph", checkpoint, "--peer", "--engine", "lammps"),
        ("--ranks belongs to --engine lammps, but the engine is graph", artifact, "--ranks", 2),
        ("--steps belongs to --engine lammps", artifact, "--steps", 20),
        ("--repeats belongs to --engine graph", artifact, "--engine", "lammps", "--repeats", 3),
        ("does not exist", artifact, "--output", tmp_path / "absent" / "r.json"),
        ("cannot draw 'p.jpg2'", artifact, "--plot", tmp_path / "p.jpg2"),
    ]
    for message, *arguments in cases:
        with pytest.raises(NequIPMDError, match=message):
            run(*arguments)
    with pytest.raises(NequIPMDError, match="engine 'gromacs' is not known; choose from graph, lammps"):
        BenchOptions(str(artifact), engines=["graph", "gromacs"])
    monkeypatch.setitem(sys.modules, "allegro", None)
    with pytest.raises(NequIPMDError, match="pip install nequip nequip-allegro"):
        run(checkpoint, "--peer", "--sizes", 3)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NequIPMDError, match="pip install matplotlib"):
        run(artifact, "--plot", tmp_path / "p.png")


PEERS = {
    "nequip-allegro": AllegroConfig(
        type_names=["H", "O"],
        cutoff=4.0,
        pair_cutoffs={"H": {"H": 3.2}},
        avg_num_neighbors=18.0,
        l_max=1,
        num_layers=1,
        num_scalar_features=8,
        num_tensor_features=4,
        allegro_mlp_depth=0,
    ),
    "nequip": NequIPConfig(
        type_names=["H", "O"],
        cutoff=4.0,
        pair_cutoffs={"H": {"H": 3.2}},
        avg_num_neighbors=18.0,
        energy_scales={"H": 0.5, "O": 2.0},
        energy_shifts=-1.0,
        num_layers=2,
        num_features=[4, 2],
        radial_mlp_width=8,
        readout_mlp_depth=1,
        readout_mlp_width=4,
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_peer(name, tmp_path):
    """Upstream's model in its own compiled form, of our configuration: equal forces, rows of both."""
    save(tmp_path / "tiny.nqmd", build_model(PEERS[name]))
    before = torch.get_default_dtype()
    rows = run(tmp_path / "tiny.nqmd", "--peer", "--sizes", 24, "--repeats", 2, "--output", tmp_path / "r.json")
    assert torch.get_default_dtype() == before
    assert [row.who.split()[0] for row in rows] == ["nequip-md", name]
    assert all(row.ms_per_step > 0 and row.precision == "fp32" for row in rows)
    assert json.loads((tmp_path / "r.json").read_text())["relative_force_difference"]["fp32"] < 1e-5


def test_different_models_are_not_compared(small_models):
    """The comparison of forces can fail: upstream's place is taken by another model."""
    artifact = load_artifact(small_models("allegro_fp64")[1])
    box = water_box(24)

    class Scaled(peer.PeerArtifact):
        def __init__(self, factor):
            self.device, self.factor = "cpu", factor

        def inputs(self, atoms):
            return list(build_graph(Structure.from_ase(atoms, artifact.type_names), artifact.pair_cutoffs).tensors)

        def __call__(self, inputs):
            graph = peer.build_graph(peer.Structure.from_ase(box, artifact.type_names), artifact.pair_cutoffs)
            return {"forces": self.factor * peer.forces_from_gradient(graph, artifact(graph)[1])}

    assert Scaled(1.0).compare(artifact, box) == 0
    with pytest.raises(NequIPMDError, match="cannot be compared"):
        Scaled(1.01).compare(artifact, box)


def test_help_names_every_preset():
    text = " ".join(parser().format_help().split())
    assert f"{', '.join(ALLEGRO_PRESETS)} (Allegro), {', '.join(NEQUIP_PRESETS)} (NequIP)" in text


def test_presets_take_the_elements_of_the_structure():
    config = preset_config("small", octanal())
    assert config.type_names == ["C", "H", "O"] == config.pair_potential.chemical_species
    assert config.avg_num_neighbors == build_graph(Structure.from_ase(octanal(), ["C", "H", "O"]), 6.0).num_edges / 25
