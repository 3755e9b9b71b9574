"""The scripts in ``benchmarks/``, on small artifacts and systems. No times are asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "nve_water")]
import accuracy
import counters
import data_store
import kernel_times
import large_store
import make_data
import nve_drift
import rounding
import scaling
import target_rows
import targets

from nequip_md.artifact import load_artifact
from nequip_md.bench.structures import water_box
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph
from nequip_md.model import AllegroConfig
from nequip_md.training.data.store import GraphStore

WATER = ("medium", "water", "fp32")


@pytest.fixture
def session(small_models, tmp_path, monkeypatch):
    """A small artifact in the place of the presets', and fewer atoms."""
    artifact = small_models("allegro_fp32")[1]
    monkeypatch.setattr(target_rows, "REFERENCE_ATOMS", 81)
    needs = [need for work in target_rows.ROWS.values() for need in work.needs]
    return target_rows.Session(
        device="cpu",
        gpu="NVIDIA H100",
        folder=tmp_path,
        dhfr=tmp_path / "absent.data",
        peer=False,
        from_atoms=192,
        max_atoms=400,
        many_steps=10,
        report=lambda line: None,
        artifacts=dict.fromkeys(needs, artifact),
    )


def test_every_work_has_its_own_name():
    names = [target.work for work in target_rows.ROWS.values() for target in work.targets]
    assert len(set(names)) == len(names)


def test_results_are_merged(tmp_path):
    first, second = (target_rows.ROWS[key].targets[0] for key in ("medium-tf32", "small"))
    path = tmp_path / "targets.json"
    old = targets.entry(second, target_rows.Figure(3.0, 12.2, "a paper", "a note"), "GPU A", "command")
    stale = {**old, "work": "a row that is no longer measured"}
    targets.write(path, [stale, old])
    targets.write(path, [targets.entry(first, target_rows.Figure(1.23456789), "GPU B", "command")])
    table = [target.work for work in target_rows.ROWS.values() for target in work.targets]
    entries = json.loads(path.read_text())
    assert [e["work"] for e in entries] == [*table, stale["work"]], (
        "in the order of the table, then what it does not know"
    )
    assert all(
        e["ours"] is e["date"] is e["machine"] is None
        for e in entries
        if e["work"] not in (first.work, second.work, stale["work"])
    )
    targets.write(path, [targets.entry(first, None, "GPU C", "command")])
    merged = [e for e in json.loads(path.read_text()) if e["work"] in (first.work, second.work, stale["work"])]
    assert merged[1:] == [old, stale] and merged[0]["machine"] == "GPU C"
    assert (merged[0]["peer"], merged[0]["ours"], merged[0]["target"]) == (None, None, first.target)
    assert {"work", "peer", "ours", "target", "unit", "machine", "command", "date"} <= set(merged[0])
    assert old["peer_source"] == "a paper" and old["note"] == "a note"


def test_rows_are_measured_and_a_failure_is_recorded(session):
    entries, reason = targets.measure("96-atoms", session, "command")
    assert (
        reason is None and entries[0]["ours"] > 0 and entries[0]["peer"] == 310 and "PyTorch" in entries[0]["machine"]
    )
    entries, reason = targets.measure("dhfr", session, "command")
    assert [e["ours"] for e in entries] == [None, None] and "absent.data; name the LAMMPS data file" in reason
    entries, reason = targets.measure("molecule", session, "command")  # this artifact has no carbon
    assert entries[0]["ours"] is None and "no type for C" in reason


def test_the_largest_system(session):
    atoms, loss = target_rows.largest(session)
    assert atoms.ours == 375 and "than 400 atoms was tried" in atoms.note and atoms.peer == 29000
    assert loss.ours > -100 and "375 atoms" in loss.note and "against 81 atoms" in loss.note


def test_doubling_ends_at_the_first_failure(session, monkeypatch):
    def bench(self, model, *arguments):
        if arguments[1] > 300:
            raise NequIPMDError("out of memory")
        return run(self, model, *arguments)

    run = target_rows.Session.bench
    monkeypatch.setattr(target_rows.Session, "bench", bench)
    assert target_rows.largest(session)[0].ours == 192
    session.seconds = 0.0
    atoms, _ = target_rows.largest(session)
    assert atoms.ours == 192 and atoms.note == "384 atoms were not tried, for want of time"
    monkeypatch.setattr(target_rows, "REFERENCE_ATOMS", 301)
    with pytest.raises(NequIPMDError, match="out of memory"):
        target_rows.largest(session)


def test_overhead_is_the_difference(session):
    (figure,) = target_rows.overhead(session)
    numbers = [float(word) for word in figure.note.replace(",", "").split() if word[0].isdigit()]
    assert figure.ours == pytest.approx(numbers[0] - numbers[2], abs=2e-3) and numbers[1] == numbers[3] == 81


def test_artifacts_that_are_there_are_used_and_failures_kept(session, small_models, tmp_path):
    artifact = small_models("allegro_fp32")[1]
    (tmp_path / "medium-water-fp32-cpu.pt2").write_bytes(artifact.read_bytes())
    session.compile([WATER, ("medium", "dhfr", "fp32")], jobs=1)
    assert session.artifact(*WATER).parent == tmp_path
    with pytest.raises(NequIPMDError, match="absent.data"):
        session.artifact("medium", "dhfr", "fp32")


def test_errors_against_float64():
    config = AllegroConfig(
        type_names=["H", "O"],
        cutoff=4.0,
        avg_num_neighbors=18.0,
        l_max=1,
        num_layers=1,
        num_scalar_features=8,
        num_tensor_features=4,
        pair_potential={"chemical_species": ["H", "O"]},
    )
    graph = build_graph(Structure.from_ase(water_box(24), config.type_names), config.cutoff)
    result = accuracy.errors({"model": config}, graph, "cpu", ["fp32"], report=lambda line: None)["model"]
    assert set(result) == {"eager PyTorch, fp32, TF32 off", "artifact fp32"}
    for row in result.values():
        assert 0 < row["energies"] < 1e-5 and 0 < row["edge_gradients"] < 1e-5 and 0 < row["forces"] < 1e-5


def test_options_of_presets_are_checked():
    config = AllegroConfig(type_names=["H", "O"], cutoff=4.0)
    assert not accuracy.changed(config, ["parity=false", "allegro_mlp_nonlinearity=mish"]).parity
    for wrong in (["partiy=false"], ["l_max=9"], ["parity"]):
        with pytest.raises(NequIPMDError, match=f"--set {wrong[0]}"):
            accuracy.changed(config, wrong)


@pytest.mark.parametrize("order", rounding.ORDERS)
def test_scales_make_up_for_what_tensor_cores_round_off(order):
    row = rounding.measure(256, order, rows=100)
    assert row["taken"] == pytest.approx(1 / 3, abs=0.1)
    assert row["scaled"] < 0.6 * row["as it is"]


def test_times_by_operator(small_models):
    artifact = load_artifact(small_models("allegro_fp32")[1])
    graph = build_graph(Structure.from_ase(water_box(24), artifact.type_names), artifact.pair_cutoffs)
    rows = kernel_times.kernel_table(lambda: artifact(graph), "cpu", 2)
    assert all(row["ms"] > 0 and row["calls"] > 0 for row in rows) and np.all(np.diff([row["ms"] for row in rows]) <= 0)
    assert (
        kernel_times.short("void at::native::kernel<4, at::Functor<float>, char*>(int, char*)") == "at::native::kernel"
    )
    assert len(kernel_times.short("triton_poi_fused_" * 9)) == kernel_times.NAME_WIDTH


def test_counters_are_read():
    """What ncu writes as raw CSV: other lines, names, units, one line for each kernel."""
    stall = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
    names = [
        "ID",
        "Kernel Name",
        "Grid Size",
        "gpu__time_duration.sum",
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
        stall.format("barrier"),
        stall.format("long_scoreboard"),
    ]
    lines = [
        names,
        ["", "", "", "us", "%", "", ""],
        ["0", "energy_kernel", "(264, 1, 1)", "5,290.5", "20.5", "1.5", "4.5"],
    ]
    (row,) = counters.read("==PROF== Connected\n" + "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines))
    assert row["kernel"] == "energy_kernel" and row["ms"] == pytest.approx(5.2905) and row["memory"] == 20.5
    assert row["waits"] == {"long_scoreboard": 0.75, "barrier": 0.25} and row["compute"] is None
    with pytest.raises(NequIPMDError, match="it says: .*no permission"):
        counters.read("==ERROR== no permission")


@pytest.mark.parametrize(
    ("energy", "count"),
    [
        ([5.0, 5.2, 4.8], 3),
        ([5.0, 5.2, 6.1, 5.0], 2),
        ([5.0, float("nan"), 5.0], 1),
        ([float("nan")], 0),
        ([], 0),
    ],
)
def test_a_trajectory_is_used_up_to_its_breakdown(energy, count):
    assert nve_drift.conserved_rows(np.array(energy)) == count


def test_frames_of_classical_water():
    (atoms,) = make_data.make(frames=1, seed=3)
    bonds = atoms.get_all_distances(mic=True).reshape(64, 3, 64, 3)
    bonds = np.array([bonds[k, 0, k, 1:] for k in range(64)])
    assert abs(bonds - 1.03).max() < 0.2  # whole molecules
    # forces are the gradient of a sum over pairs and triples, and of the usual size
    assert abs(atoms.get_forces().sum(axis=0)).max() < 1e-8 and 0.3 < atoms.get_forces().std() < 2.0
    assert -40 < atoms.get_potential_energy() < -5


def test_stores_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data_store, "PROCESSES", (1,))
    ase.io.write(tmp_path / "water.traj", [water_box(81)] * 3)
    found = data_store.measure(str(tmp_path / "water.traj"), ["H", "O"], 3.0, 2, 5, tmp_path)
    assert found["frames"] == 6 and found["atoms in a frame"] == 81 and found["edges in a frame"] > 500
    assert found["conversion, processor ms/frame"]["1"]["this process"] > 0
    assert all(found["random reads, frames/s"][name]["1"] > 0 for name in data_store.READERS)
    # 28 bytes for each edge, 36 for each atom, and little more
    assert found["bytes in a frame"] > 28 * found["edges in a frame"]
    assert found["file, MB"]["lmdb"] * 1e6 / 6 < 28 * found["edges in a frame"] + 36 * 81 + 3e4


def test_large_stores_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(large_store, "WORKERS", (0, 1))
    monkeypatch.setattr(large_store, "GROUP", 40)
    found = large_store.measure(tmp_path / "x.graphs", water_box(81), ["H", "O"], 3.0, 100, 5, 2)
    store = GraphStore(tmp_path / "x.graphs")
    assert len(store) == 100 and len({sample.energy.item() for sample in store}) == 100
    assert found["open"]["training frames"] == 99 and found["write"]["processes"] == 2
    assert found["epoch, by workers"]["1"]["batches/s"] > 0 and found["epoch, by workers"].keys() == {"0", "1"}
    # a process that has imported PyTorch takes more than this
    assert found["open"]["opened, MB"] >= found["open"]["imports, MB"] > 50


def test_scaling(small_models, tmp_path):
    """Two processes beside one, of a model with message passing: they send features and gradients, and one alone sends nothing."""
    divisions = {1: (1, 1, 1), 2: (2, 1, 1), 6: (3, 2, 1), 8: (2, 2, 2), 12: (3, 2, 2)}
    assert {ranks: scaling.divisions(ranks) for ranks in divisions} == divisions
    artifact = small_models("nequip_fp64")[1]
    points = scaling.points(artifact, ["H", "O"], [2, 1], 81, 192, steps=1, repeats=1, report=lambda line: None)
    sizes = [("weak", 1, 81), ("strong", 1, 192), ("weak", 2, 162), ("strong", 2, 192)]
    assert [(p.scaling, p.ranks, p.atoms) for p in points] == sizes
    for point in points:
        first = next(p for p in points if p.scaling == point.scaling)
        share = first.ms_per_step * point.atoms / first.atoms / point.ranks
        assert point.efficiency == pytest.approx(share / point.ms_per_step)
        assert (point.exchanged_mb > 0) == (point.exchange_ms > 0) == (point.ranks > 1)
    scaling.plot(tmp_path / "scaling.png", points, "two processes")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
