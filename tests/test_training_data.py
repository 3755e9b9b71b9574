"""Files to labelled samples, splits, orders, and the statistics of a data set, against NumPy."""

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from nequip_md.errors import NequIPMDError
from nequip_md.model.config import AllegroConfig
from nequip_md.training.config import DataConfig
from nequip_md.training.data.batches import Batches
from nequip_md.training.data.data_module import AtomsData, Labels, collate, make_sample, split
from nequip_md.training.data.statistics import automatic_value, compute_statistics, isolated_atom_energies

TYPES = ["H", "O"]
CUTOFF = 1.6
MODEL = AllegroConfig(type_names=TYPES, cutoff=CUTOFF, pair_cutoffs={"H": {"H": 1.1}})


def frame(rng, symbols, *, energy=0.0, forces=True, stress=None, cell=None):
    n = len(symbols)
    atoms = Atoms(symbols, positions=rng.uniform(0, 2, (n, 3)), cell=cell, pbc=cell is not None)
    results = {"energy": energy, "forces": rng.normal(size=(n, 3)) if forces else None, "stress": stress}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def frames():
    rng = np.random.default_rng(7)
    return [frame(rng, s, energy=rng.normal()) for s in ("HHO", "HOO", "OOOO", "HHHO", "H")]


def test_statistics_agree_with_loops_over_all_pairs(frames):
    frames[1].calc.results.pop("forces")
    frames[3].calc.results.pop("energy")
    found = compute_statistics([make_sample(a, MODEL) for a in frames], TYPES)

    edges, atoms = dict.fromkeys(TYPES, 0), dict.fromkeys(TYPES, 0)
    squares = {t: [] for t in TYPES}
    closest, largest = {t: {} for t in TYPES}, 0.0
    for a in frames:
        for i, centre in enumerate(a.symbols):
            atoms[centre] += 1
            for j, neighbour in enumerate(a.symbols):
                limit = 1.1 if centre == neighbour == "H" else CUTOFF
                distance = np.linalg.norm(a.positions[i] - a.positions[j])
                if i != j and distance < limit:
                    edges[centre] += 1
                    closest[centre][neighbour] = min(distance, closest[centre].get(neighbour, np.inf))
            if "forces" in a.calc.results:
                largest = max(largest, np.linalg.norm(a.calc.results["forces"][i]))
                squares[centre] += list(a.calc.results["forces"][i] ** 2)
    assert found.num_frames == 5 and found.num_atoms == atoms
    assert found.avg_num_neighbors == pytest.approx(sum(edges.values()) / sum(atoms.values()), rel=1e-14)
    assert found.avg_num_neighbors_by_type == pytest.approx({t: edges[t] / atoms[t] for t in TYPES}, rel=1e-14)
    assert 0 < found.avg_num_neighbors < 3
    assert found.force_rms == pytest.approx(np.sqrt(np.mean(squares["H"] + squares["O"])), rel=1e-14)
    assert found.force_rms_by_type == pytest.approx({t: np.sqrt(np.mean(squares[t])) for t in TYPES}, rel=1e-14)

    assert found.closest_distances == {t: pytest.approx(closest[t], rel=1e-14) for t in TYPES}
    assert set(closest["H"]) == {"O"} and set(closest["O"]) == {"H", "O"}  # no two H within their cutoff
    assert found.largest_force == pytest.approx(largest, rel=1e-14)

    with_energy = [a for a in frames if "energy" in a.calc.results]
    counts = np.array([[list(a.symbols).count(t) for t in TYPES] for a in with_energy], dtype=float)
    energies = np.array([a.calc.results["energy"] for a in with_energy])
    shifts = np.linalg.solve(counts.T @ counts, counts.T @ energies)
    assert found.least_squares_shifts == pytest.approx(dict(zip(TYPES, shifts)), rel=1e-10)
    assert found.composition_rank == 2
    left = (energies - counts @ shifts) / counts.sum(1)
    assert found.energy_rms == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-10)


def test_one_composition_gives_the_shifts_of_the_smallest_norm():
    rng = np.random.default_rng(1)
    found = compute_statistics([make_sample(frame(rng, "HHO", energy=-10.0), MODEL) for _ in range(3)], TYPES)
    assert found.composition_rank == 1
    alone = compute_statistics([make_sample(Atoms("H", [[0, 0, 0]]), MODEL)], TYPES)
    assert alone.closest_distances == {} and alone.largest_force is None
    assert found.least_squares_shifts == pytest.approx({"H": -4.0, "O": -2.0}, rel=1e-12)


def test_the_fit_of_many_frames_is_that_of_all_at_once():
    """One pass over an iterator, block by block, with total energies as large as those of all-electron methods."""
    rng = np.random.default_rng(5)
    frames, atom = [], {"H": -13.6, "O": -2041.3}
    for _ in range(2500):
        symbols = "H" * rng.integers(0, 3) + "O" * rng.integers(1, 3)
        energy = sum(atom[s] for s in symbols) + rng.normal(scale=1e-3)
        frames.append(Atoms(symbols, positions=2.0 * np.arange(len(symbols))[:, None] * [1, 0, 0]))
        frames[-1].calc = SinglePointCalculator(frames[-1], energy=energy)
    found = compute_statistics((make_sample(a, MODEL) for a in frames), TYPES)
    counts = np.array([[list(a.symbols).count(t) for t in TYPES] for a in frames], dtype=float)
    energies = np.array([a.calc.results["energy"] for a in frames])
    shifts = np.linalg.lstsq(counts, energies, rcond=None)[0]
    assert found.least_squares_shifts == pytest.approx(dict(zip(TYPES, shifts)), rel=1e-12)
    left = (energies - counts @ shifts) / counts.sum(1)
    assert found.energy_rms == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-7)
    assert found.num_frames == 2500 and found.composition_rank == 2


@pytest.mark.parametrize(
    ("key", "word", "isolated", "expected"),
    [
        ("avg_num_neighbors", "auto", None, lambda s: s.avg_num_neighbors),
        ("avg_num_neighbors", "auto_by_type", None, lambda s: s.avg_num_neighbors_by_type),
        ("energy_scales", "auto", None, lambda s: s.force_rms),
        ("energy_scales", "force_rms_by_type", None, lambda s: s.force_rms_by_type),
        ("energy_shifts", "auto", None, lambda s: s.least_squares_shifts),
        ("energy_shifts", "auto", {"H": -1.0, "O": 0.0}, lambda s: {"H": -1.0, "O": 0.0}),
        ("energy_shifts", "least_squares", {"H": -1.0, "O": 0.0}, lambda s: s.least_squares_shifts),
    ],
)
def test_automatic_values(frames, key, word, isolated, expected):
    statistics = compute_statistics([make_sample(a, MODEL) for a in frames], TYPES)
    assert automatic_value(key, word, statistics, isolated, TYPES) == expected(statistics)


@pytest.mark.parametrize(
    ("key", "word", "expected"),
    [
        ("energy_shifts", "auto", "needs energies of O"),
        ("energy_scales", "force_rms", "needs forces that differ from 0"),
        ("avg_num_neighbors", "auto_by_type", "of O, which the training data lacks"),
        ("energy_shifts", "isolated_atoms", "data.isolated_atoms"),
    ],
)
def test_what_the_data_does_not_determine_is_refused(key, word, expected):
    rng = np.random.default_rng(2)
    statistics = compute_statistics([make_sample(frame(rng, "HH", energy=1.0, forces=False), MODEL)], TYPES)
    with pytest.raises(NequIPMDError, match=expected) as error:
        automatic_value(key, word, statistics, None, TYPES)
    assert f"model.{key}" in str(error.value)


def isolated(symbols, energy):
    atoms = Atoms(symbols, positions=np.zeros((len(symbols), 3)))
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return "frame", atoms


def test_isolated_atoms_give_one_energy_for_each_type():
    given = [isolated("O", -2.0), isolated("H", -1.0), isolated("H", -1.0), isolated("C", -3.0)]
    assert isolated_atom_energies(given, TYPES, Labels()) == {"H": -1.0, "O": -2.0}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([("H", -1.0)], "no energy of O, only of H; add it"),
        ([("H", -1.0), ("H", -2.0), ("O", 0.0)], "H has two energies"),
        ([("HO", -1.0)], "this one has 2 atoms"),
        ([("H", None)], "energy None"),
    ],
)
def test_unusable_isolated_atoms_are_refused(given, expected):
    with pytest.raises(NequIPMDError, match=expected):
        isolated_atom_energies([isolated(*g) for g in given], TYPES, Labels())


def test_labels_survive_the_way_through_a_file_and_a_batch(tmp_path):
    rng = np.random.default_rng(3)
    cell = np.array([[3.0, 0, 0], [0.5, 3.2, 0], [0.1, 0.2, 2.9]])
    voigt = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) / 100
    given = [frame(rng, "HHO", energy=-1.5, stress=voigt, cell=cell), frame(rng, "OH", energy=2.5)]
    ase.io.write(tmp_path / "data.extxyz", given)
    samples = [make_sample(a, MODEL) for a in ase.io.read(tmp_path / "data.extxyz", ":")]
    batch = collate(samples)
    assert batch.num_atoms.tolist() == [3, 2]
    torch.testing.assert_close(batch.energy, torch.tensor([-1.5, 2.5], dtype=torch.float64))
    np.testing.assert_allclose(
        batch.forces.numpy(), np.concatenate([a.calc.results["forces"] for a in given]), atol=1e-7
    )
    full = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]) / 100
    np.testing.assert_allclose(batch.stress[0].numpy(), full, rtol=1e-12)
    assert batch.stress[1].isnan().all()
    assert batch.volume.tolist() == [pytest.approx(np.linalg.det(cell)), float("inf")]


def test_labels_under_other_names():
    atoms = Atoms("HO", positions=[[0, 0, 0], [1, 0, 0]], cell=3 * np.eye(3), pbc=True)
    atoms.info.update(dft_energy=-3.0, dft_stress=np.arange(9.0).reshape(3, 3))
    atoms.arrays["dft_forces"] = np.full((2, 3), 0.5)
    sample = make_sample(atoms, MODEL, Labels("dft_energy", "dft_forces", "dft_stress"))
    assert sample.energy.item() == -3.0 and (sample.forces == 0.5).all()
    assert sample.stress[0].tolist() == atoms.info["dft_stress"].tolist()
    assert make_sample(atoms, MODEL).energy.isnan().all()


def poisoned(**results):
    atoms = Atoms("HO", positions=[[0, 0, 0], [1, 0, 0]])
    atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    atoms.calc.results.update(results)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (poisoned(energy=np.nan), "a value of its energy is not finite"),
        (poisoned(forces=np.full((2, 3), np.inf)), "a value of its forces is not finite"),
        (poisoned(forces=np.zeros((3, 3))), r"its forces have shape \(3, 3\)"),
        (poisoned(stress=np.zeros(5)), "its stress has 5 components"),
        (poisoned(energy=np.zeros(2)), "its energy is not one number"),
        (Atoms("HC", positions=[[0, 0, 0], [1, 0, 0]]), "no type for C"),
    ],
)
def test_a_frame_that_cannot_be_used_is_refused(atoms, expected):
    with pytest.raises(NequIPMDError, match=expected):
        make_sample(atoms, MODEL)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train": ["absent.extxyz"]}, "absent.extxyz does not exist"),
        ({"train": ["text.extxyz"]}, "ASE cannot read"),
        ({"train": ["carbon.extxyz", "good.extxyz"]}, r"frame 1 of .*carbon.extxyz: the model has no type for C"),
        ({"train": ["good.extxyz", "tiny.extxyz"]}, r"frame 2 of .*tiny.extxyz: the cell .* has probably collapsed"),
        ({"train": ["close.extxyz"]}, r"frame 1 of .*close.extxyz: atoms 0 and 1 are 0.05 Å apart"),
        ({"energy_key": "TotEnergy", "force_key": "F"}, "data.energy_key, data.force_key"),
        ({"validation_split": 6}, "take 6 of 6 training frames"),
        ({"validation_split": 0.01}, "holds no frame"),
    ],
)
def test_data_that_cannot_be_used_is_refused(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    ase.io.write("good.extxyz", [frame(rng, "HHO") for _ in range(6)])
    ase.io.write("carbon.extxyz", [frame(rng, "HHO"), frame(rng, "HHC")])
    tiny = Atoms("H", cell=[0.01, 0.01, 0.01], pbc=True)
    ase.io.write("tiny.extxyz", [frame(rng, "HHO"), frame(rng, "HHO"), tiny])
    ase.io.write("close.extxyz", [frame(rng, "HHO"), Atoms("HO", positions=[[0, 0, 0], [0.05, 0, 0]])])
    (tmp_path / "text.extxyz").write_text("not a structure\nat all\n")
    with pytest.raises(NequIPMDError, match=expected):
        AtomsData(DataConfig(**{"train": ["good.extxyz"], "validation_split": 2, **options}), MODEL)


def test_splits_are_disjoint_complete_and_follow_the_seed():
    parts = split(50, [0.1, 7.0], seed=3)
    assert [len(p) for p in parts] == [38, 5, 7]
    assert sorted(np.concatenate(parts)) == list(range(50))
    again, other = split(50, [0.1, 7.0], seed=3), split(50, [0.1, 7.0], seed=4)
    assert all((a == b).all() for a, b in zip(parts, again))
    assert not (parts[1] == other[1]).all()
    assert [len(p) for p in split(5, [None, None], seed=0)] == [5, 0, 0]


def test_an_epoch_of_several_passes():
    once, thrice = Batches([3] * 20, [8] * 20, (7,), seed=1), Batches([3] * 20, [8] * 20, (7,), seed=1, passes=3)
    frames = [frame for batch in thrice for frame in batch]
    assert len(thrice) == 9 and max(map(len, thrice)) == 7  # 60 frames, batches go on across the ends of passes
    passes = [frames[:20], frames[20:40], frames[40:]]
    assert all(sorted(p) == list(range(20)) for p in passes)
    assert passes[0] == [frame for batch in once for frame in batch]
    assert passes[0] != passes[1] != passes[2]


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    def batches(seed, epoch):
        made = Batches([3] * 20, [8] * 20, (6,), seed=seed)
        made.set_epoch(epoch)
        return list(made)

    first, second = batches(1, 0), batches(1, 1)
    assert sorted(frame for batch in first for frame in batch) == list(range(20))
    assert [len(batch) for batch in first] == [6, 6, 6, 2]
    assert batches(1, 0) == first and batches(1, 1) == second
    assert first != second and batches(2, 0) != first
