"""Comparison of pair_style nequip with LAMMPS' own lj/cut for the same potential: all results must be equal."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from support.lammps_compare import RELATIVE, SHIFTS, assert_same
from support.lammps_run import measurement, read_measurement, run_lammps
from support.lammps_systems import NATIVE, SYSTEMS, nequip

WITHOUT_FORCES = ("isolated atom", "out of reach")


NEWTON = ("on", "off")


def slug(*words) -> str:
    return "_".join(str(w).replace(" ", "-").replace("/", "-") for w in words)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """``native(system)``: what lj/cut gives on one rank."""
    folder = tmp_path_factory.mktemp("native")
    script = "clear\n".join(
        s.start(folder / slug(name)) + NATIVE + measurement(slug(name)) for name, s in SYSTEMS.items()
    )
    outcome = run_lammps(script, folder)
    assert outcome.status == 0, outcome.text
    return lambda name: read_measurement(folder, slug(name))


@pytest.fixture(scope="module")
def ours(lj_artifact, tmp_path_factory):
    """``ours(system, ranks, newton)``: results of pair style nequip. LAMMPS runs all systems in one start for each number of ranks."""
    folders = {}

    def get(system: str, ranks: int, newton: str) -> dict:
        if ranks not in folders:
            folders[ranks] = folder = tmp_path_factory.mktemp(f"ours_{ranks}")
            script = "clear\n".join(
                s.start(folder / slug(name), n) + nequip(lj_artifact) + measurement(slug(name, n))
                for name, s in SYSTEMS.items()
                for n in NEWTON
            )
            outcome = run_lammps(script, folder, ranks=ranks)
            assert outcome.status == 0, outcome.text
        return read_measurement(folders[ranks], slug(system, newton))

    return get


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("system", SYSTEMS)
def test_equals_native(system, ranks, native, ours):
    """Energy, pressure tensor, forces, per-atom energies and both per-atom virials; newton on and off."""
    reference = native(system)
    if system not in WITHOUT_FORCES:
        assert np.abs(reference["forces"]).max() > 1e-3
    for newton in NEWTON:
        result = ours(system, ranks, newton)
        assert_same(result, reference, f"newton {newton}")
        np.testing.assert_allclose(
            result["centroid"].sum(0)[:6], result["virials"].sum(0), atol=RELATIVE * np.abs(result["virials"]).sum()
        )


AR, MIXED, NE = "0.0104 3.4 6.0", "0.008 3.2 5.5", "0.006 3.0 5.0"


def coefficients(style: str = "", **values: str) -> str:
    """``coefficients(c12="0.008 3.2 5.5")``: pair_coeff commands for pairs of atom types."""
    return "".join(f"pair_coeff {key[1]} {key[2]} {style} {value}\n" for key, value in values.items())


TWO_TYPES = {"c11": AR, "c12": MIXED, "c22": NE}
EXCHANGED = {"c11": NE, "c12": MIXED, "c22": AR}
THIRD_AS_FIRST = {**TWO_TYPES, "c13": AR, "c23": MIXED, "c33": AR}
DOUBLED = {"c11": "0.0208 3.4 6.0", "c12": "0.016 3.2 5.5", "c22": "0.012 3.0 5.0"}
HYBRID = "pair_style {kind} nequip lj/cut 6.0\npair_modify pair lj/cut shift yes\n"

VARIANTS = {  # number of atom types, native coefficients, our input
    "elements in the other order": (2, EXCHANGED, "pair_style nequip\npair_coeff * * {path} Ne Ar\n"),
    "two atom types of one element": (3, THIRD_AS_FIRST, "pair_style nequip\npair_coeff * * {path} Ar Ne Ar\n"),
    "hybrid with NULL": (
        2,
        TWO_TYPES,
        HYBRID.format(kind="hybrid")
        + "pair_coeff * * nequip {path} Ar NULL\n"
        + coefficients("lj/cut", c12=MIXED, c22=NE),
    ),
    "hybrid/overlay": (
        2,
        DOUBLED,
        HYBRID.format(kind="hybrid/overlay")
        + "pair_coeff * * nequip {path} Ar Ne\n"
        + coefficients("lj/cut", **TWO_TYPES),
    ),
    "hybrid/scaled": (
        2,
        DOUBLED,
        "pair_style hybrid/scaled 0.5 nequip 1.5 lj/cut 6.0\npair_modify pair lj/cut shift yes\n"
        "pair_coeff * * nequip {path} Ar Ne\n" + coefficients("lj/cut", **TWO_TYPES),
    ),
    "two instances": (
        2,
        DOUBLED,
        "pair_style hybrid/overlay nequip nequip max_edges 3000\n"
        "pair_coeff * * nequip 1 {path} Ar Ne\npair_coeff * * nequip 2 {path} Ar Ne\n",
    ),
    "coefficients issued again": (
        2,
        TWO_TYPES,
        "pair_style nequip\npair_coeff * * {path} Ne Ne\nrun 0\npair_coeff * * {path} Ar Ne\n",
    ),
    "style issued again": (
        2,
        TWO_TYPES,
        "pair_style nequip\npair_coeff * * {path} Ne Ne\nrun 0\npair_style nequip device cpu\n"
        "pair_coeff * * {path} Ar Ne\n",
    ),
}


@pytest.fixture(scope="module")
def variants(lj_artifact, tmp_path_factory):
    """The folder where two ranks have measured every variant, with lj/cut and with the pair style."""
    folder = tmp_path_factory.mktemp("variants")
    system = SYSTEMS["orthogonal"]
    third = np.where((system.types == 1) & (np.arange(len(system.types)) % 3 == 0), 3, system.types)
    script = ""
    for variant, (num_types, native_values, lines) in VARIANTS.items():
        for newton in NEWTON:
            start = "clear\n" + system.start(
                folder, newton, num_types=num_types, types=third if num_types == 3 else None
            )
            script += (
                start
                + NATIVE.split("pair_coeff")[0]
                + coefficients(**native_values)
                + measurement(slug("native", variant, newton))
            )
            script += start + lines.format(path=lj_artifact) + measurement(slug("ours", variant, newton))
    outcome = run_lammps(script, folder, ranks=2)
    assert outcome.status == 0, outcome.text
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_type_maps_and_hybrids(variant, variants):
    """Forces, pressure and virials on two ranks for other ways of naming types (energies differ by constants)."""
    for newton in NEWTON:
        reference, result = (read_measurement(variants, slug(who, variant, newton)) for who in ("native", "ours"))
        for key in ("forces", "pressure", "virials", "centroid"):
            scale = np.abs(reference[key]).max()
            assert scale > 1e-3
            np.testing.assert_allclose(
                result[key], reference[key], rtol=0, atol=RELATIVE * scale, err_msg=f"newton {newton} {key}"
            )


DYNAMICS = """
velocity all create 400 4928459
fix move all nve
neighbor 0.3 bin
neigh_modify every 1 delay 0 check yes
thermo_style custom step pe press temp
run 100
print "$(pe:%.17g) $(press:%.17g) $(temp:%.17g)" file {name}
minimize 0 1e-4 10 40
print "$(pe:%.17g) $(press:%.17g)" append {name}
"""


@pytest.mark.parametrize("ranks, newton, threads", [(1, "on", 1), (1, "on", 2), (2, "on", 1), (2, "off", 1)])
def test_dynamics_over_rebuilt_lists(ranks, newton, threads, lj_artifact, tmp_path):
    """Trajectory and minimisation follow lj/cut while atoms change ranks and neighbour lists are rebuilt."""
    system = SYSTEMS["orthogonal"]
    start = system.start(tmp_path, newton)
    script = (
        start
        + NATIVE
        + DYNAMICS.format(name="native")
        + "clear\n"
        + start
        + nequip(lj_artifact, keywords=f"threads {threads}")
        + DYNAMICS.format(name="ours")
    )
    outcome = run_lammps(script, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    builds = [int(line.split("=")[1]) for line in outcome.text.splitlines() if line.startswith("Neighbor list builds")]
    assert builds[2] > 3, "the lists were hardly rebuilt, so this tests less than it says"
    reference, ours = (np.array((tmp_path / name).read_text().split(), dtype=float) for name in ("native", "ours"))
    shifts = sum(SHIFTS[t] for t in system.types)
    np.testing.assert_allclose(ours - shifts * np.array([1, 0, 0, 1, 0]), reference, rtol=1e-7)


def test_openmp_beside_torch(native, lj_artifact, tmp_path):
    """Two OpenMP runtimes in one process: LAMMPS' threaded styles with 2 threads beside the model with 1, 2 and 3."""
    start = "package omp 2\n" + SYSTEMS["orthogonal"].start(tmp_path)
    script = ""
    for threads in (1, 2, 3):
        script += (
            f"clear\n{start}pair_style hybrid/overlay nequip threads {threads} lj/cut/omp 6.0\n"
            f"pair_coeff * * nequip {lj_artifact} Ar Ne\n{coefficients('lj/cut/omp', **TWO_TYPES)}"
            "fix move all nve\nrun 20\nunfix move\n"
            f"clear\n{start}{nequip(lj_artifact, keywords=f'threads {threads}')}{measurement(f't{threads}')}"
        )
    outcome = run_lammps(script, tmp_path, threads=2)
    assert outcome.status == 0, outcome.text
    for threads in (1, 2, 3):
        assert_same(read_measurement(tmp_path, f"t{threads}"), native("orthogonal"), f"threads {threads}")


def test_units_real(native, lj_artifact, tmp_path):
    script = SYSTEMS["triclinic"].start(tmp_path, units="real") + nequip(lj_artifact) + measurement("real")
    outcome = run_lammps(script, tmp_path)
    assert outcome.status == 0, outcome.text
    ours, reference = read_measurement(tmp_path, "real"), native("triclinic")
    kcal_per_mol, atmospheres_per_bar = 23.060549, 1 / 1.01325
    np.testing.assert_allclose(ours["forces"], kcal_per_mol * reference["forces"], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(ours["pressure"], atmospheres_per_bar * reference["pressure"], rtol=1e-6)


def test_message_passing_on_one_rank(native, doctored, tmp_path):
    """With a model that calls itself message-passing, edges end at owned atoms only; the potential is the same."""
    path = doctored(message_passing_layers="2")
    script = "".join(
        f"clear\n{SYSTEMS[system].start(tmp_path / system[:3], newton)}{nequip(path)}"
        + measurement(f"{newton}_{system[:3]}")
        for newton in NEWTON
        for system in ("triclinic", "box smaller than cutoff", "isolated atom")
    )
    outcome = run_lammps(script, tmp_path)
    assert outcome.status == 0, outcome.text
    for newton in NEWTON:
        for system in ("triclinic", "box smaller than cutoff", "isolated atom"):
            assert_same(
                read_measurement(tmp_path, f"{newton}_{system[:3]}"), native(system), f"{system}, newton {newton}"
            )


def test_cutoffs_of_ordered_pairs(lj_model, doctored, tmp_path):
    """The engine drops edges by [centre][neighbour]; checked on cutoffs below the model's own, against a dense sum."""
    cutoffs = np.array([[6.0, 5.5], [4.4, 4.0]])
    path = doctored(pair_cutoffs=" ".join(map(str, cutoffs.ravel())))
    outcome = run_lammps(
        SYSTEMS["cluster in a corner"].start(tmp_path) + nequip(path) + measurement("ours"), tmp_path, ranks=2
    )
    assert outcome.status == 0, outcome.text
    ours = read_measurement(tmp_path, "ours")
    types, x = ours["types"] - 1, ours["positions"]
    distance = np.linalg.norm(x[None] - x[:, None], axis=-1) + 1e9 * np.eye(len(x))
    pair = (types[:, None], types[None, :])

    def phi(r):
        six = (lj_model.sigma.numpy()[pair] / r) ** 6
        return 4 * lj_model.epsilon.numpy()[pair] * (six * six - six)

    energy = np.where(distance < cutoffs[pair], 0.5 * (phi(distance) - phi(lj_model.cutoffs.numpy()[pair])), 0).sum(1)
    np.testing.assert_allclose(ours["energies"][:, 0], energy + np.array([SHIFTS[t] for t in types + 1]), rtol=1e-12)


def test_partitions(native, lj_artifact, tmp_path):
    """Two LAMMPS worlds in one MPI job."""
    script = (
        SYSTEMS["orthogonal"].start(tmp_path) + "variable w world a b\n" + nequip(lj_artifact) + measurement("${w}")
    )
    outcome = run_lammps(script, tmp_path, ranks=2, arguments=("-partition", "2x1"))
    assert outcome.status == 0, outcome.text
    for world in "ab":
        assert_same(read_measurement(tmp_path, world), native("orthogonal"), world)


@pytest.mark.parametrize("ranks", [1, 2])
def test_counts(ranks, lj_artifact, tmp_path):
    """compute pair gives the edges within the cutoffs, the neighbours in the lists and the evaluations, summed over ranks."""
    system = SYSTEMS["orthogonal"]
    count = "compute n all pair nequip\nthermo_style custom step pe c_n[*]\nrun 0 post no\n"
    count += 'print "$(c_n[1]) $(c_n[2]) $(c_n[3]) $(c_n[4]) $(c_n[5])" file NAME\n'
    script = "".join(
        "clear\n" + system.start(tmp_path) + nequip(lj_artifact, keywords=keywords) + count.replace("NAME", name)
        for name, keywords in (("whole", ""), ("pieces", "max_edges 1000"))
    )
    outcome = run_lammps(script, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    whole, pieces = (np.array((tmp_path / name).read_text().split(), dtype=float) for name in ("whole", "pieces"))
    atoms = ase.Atoms(["X"] * len(system.types), system.positions, cell=system.lengths, pbc=True)
    i, j, distance = neighbor_list("ijd", atoms, 6.0)
    cutoffs = np.array([[6.0, 5.5], [5.5, 5.0]])
    edges = (distance < cutoffs[system.types[i] - 1, system.types[j] - 1]).sum()
    assert whole[0] == pieces[0] == edges
    assert whole[1] == pieces[1] > edges
    assert whole[2] == ranks
    assert whole[3] == pieces[3] == edges  # nothing needed padding
    assert whole[4] == pieces[4] > len(system.types)  # ghosts: the box is three cutoffs wide
    assert edges / 1000 <= pieces[2] <= edges / 1000 + 2 * ranks + 0.1 * edges / 1000


@pytest.mark.parametrize("ranks", [1, 2])
def test_verbose(ranks, lj_artifact, plugin_folder, tmp_path):
    """At the end of a run: numbers of edges as compute pair has them, and times of each phase."""
    start = SYSTEMS["orthogonal"].start(tmp_path)
    script = (
        start
        + nequip(lj_artifact, keywords="verbose yes")
        + "compute c all pair nequip\nthermo_style custom step c_c[1]\n"
        "fix move all nve\nrun 3\n"
    )
    outcome = run_lammps(script, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    printed = outcome.text.split("Pair style nequip, 4 evaluations")[1]
    table = {line[2:36].strip(): [float(x) for x in line[36:].split()[:2]] for line in printed.splitlines()[1:7]}
    edges = [
        float(line.split()[1])
        for line in outcome.text.splitlines()
        if line.split()[:1] == ["0"] and len(line.split()) == 2
    ]
    assert table["edges"][0] * ranks == pytest.approx(edges[0], rel=0.02)
    assert table["evaluations of the model per step"] == [1, 1] and table["of these replayed"] == [0, 0]
    for phase in ("positions and neighbors", "edges, model and sums", "adding forces"):
        assert 0 < table[phase][0] <= table[phase][1]
    assert (
        "Pair style nequip, " not in run_lammps(script.replace("verbose yes", ""), tmp_path).text.split("Loop time")[1]
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_energies_for_fix_pair(ranks, lj_artifact, plugin_folder, tmp_path):
    """fix pair takes per-atom energies from the pair style every few steps; they equal those of compute pe/atom."""
    script = (
        SYSTEMS["orthogonal"].start(tmp_path) + nequip(lj_artifact) + "compute e all pe/atom pair\n"
        "fix keep all pair 2 nequip energy 1\nfix move all nve\ntimestep 0.001\n"
        "dump d all custom 2 both.dump id c_e f_keep\ndump_modify d format float %.15g sort id\nrun 4\n"
    )
    outcome = run_lammps(script, tmp_path, ranks=ranks)
    assert outcome.status == 0, outcome.text
    blocks = (tmp_path / "both.dump").read_text().split("ITEM: ATOMS id c_e f_keep\n")[1:]
    assert len(blocks) == 3
    for block in blocks:
        table = np.array([line.split() for line in block.splitlines() if len(line.split()) == 3], dtype=float)
        assert len(table) == len(SYSTEMS["orthogonal"].types) and np.ptp(table[:, 1]) > 0.01
        np.testing.assert_allclose(table[:, 2], table[:, 1], rtol=1e-13)


@pytest.mark.parametrize("kind, key", [("nequip", "Batzner2022"), ("allegro", "Musaelian2023"), ("other", None)])
def test_citation(kind, key, doctored, tmp_path):
    """LAMMPS' option -cite prints the publication of the model."""
    script = SYSTEMS["orthogonal"].start(tmp_path) + nequip(doctored(kind=kind)) + "run 0\n"
    outcome = run_lammps(script, tmp_path, arguments=("-cite", "references"))
    assert outcome.status == 0, outcome.text
    file = tmp_path / "references"
    text = file.read_text() if file.exists() else ""
    for name in ("Batzner2022", "Musaelian2023"):
        assert (name in text) == (name == key)
