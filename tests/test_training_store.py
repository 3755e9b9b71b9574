"""Stores of graphs: the same samples, statistics and training as from the files they were made of, and what is refused."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
from dataclasses import fields
from pathlib import Path

import ase.io
import lmdb
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch.utils._python_dispatch import TorchDispatchMode

from nequip_md.errors import NequIPMDError
from nequip_md.graph import batch_graphs
from nequip_md.info.cli import main as info
from nequip_md.model.config import AllegroConfig
from nequip_md.training.config import DataConfig
from nequip_md.training.data import statistics
from nequip_md.training.data.data_module import AtomsData
from nequip_md.training.data.labels import Labels
from nequip_md.training.data.samples import GraphOptions, Sample, collate
from nequip_md.training.data.stacked import StackedSamples
from nequip_md.training.data.statistics import compute_statistics
from nequip_md.training.data.store import GraphStore
from nequip_md.training.data.store_writer import write_store
from support.training_runs import MODEL, assert_same_end, crystals, run, write_data

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]
POTENTIAL = AllegroConfig(**MODEL)
OPTIONS = GraphOptions.from_potential(POTENTIAL)


def convert(source, output, potential=POTENTIAL, labels=None, **options):
    sources = [str(source)] if isinstance(source, (str, Path)) else list(map(str, source))
    write_store(
        output, sources, labels or Labels(weight="config_weight"), GraphOptions.from_potential(potential), **options
    )
    return GraphStore(output)


def read(path, potential=POTENTIAL, **keys):
    return AtomsData(DataConfig(train=[str(path)], **{"validation_split": 2, **keys}), potential)


def assert_same_samples(found, expected):
    """Equal to the last bit, and NaN where the other is."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for f in fields(Sample):
            if f.name != "graph":
                torch.testing.assert_close(getattr(one, f.name), getattr(other, f.name), rtol=0, atol=0, equal_nan=True)
        for f in fields(type(one.graph)):
            a, b = getattr(one.graph, f.name), getattr(other.graph, f.name)
            assert a.dtype == b.dtype and torch.equal(a, b), f.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("data"))
    for name in ("train", "test"):
        convert(folder / f"{name}.extxyz", folder / f"{name}.graphs")
    return folder


def mixed_frames():
    """Crystals with stress, molecules of 1 to 3 atoms with some labels or none, weights, an isolated atom."""
    molecules = [Atoms("Ar", [[0, 0, 0]]), Atoms("Ar2", [[0, 0, 0], [1.1, 0, 0]]), Atoms("Ar3", np.eye(3))]
    for k, atoms in enumerate(molecules):
        results = {"energy": -0.5 * k, "forces": np.full((len(atoms), 3), 0.1 * k)}
        atoms.calc = SinglePointCalculator(atoms, **dict(list(results.items())[: k or 2]))
        atoms.info["config_weight"] = 0.5 + k
    alone = Atoms("Ar", [[0, 0, 0]], info={"config_type": "IsolatedAtom"})
    alone.calc = SinglePointCalculator(alone, energy=-0.125)
    bare = Atoms("Ar2", [[0, 0, 0], [0, 1.2, 0]])
    return [*crystals(3, 5), alone, *molecules, bare]


def test_samples_are_those_of_the_file(tmp_path):
    ase.io.write(tmp_path / "data.extxyz", mixed_frames())
    store = convert(tmp_path / "data.extxyz", tmp_path / "data.graphs")
    expected = read(tmp_path / "data.extxyz")
    found = read(tmp_path / "data.graphs")
    for name in ("train", "validation"):
        assert_same_samples(getattr(found, name), getattr(expected, name))
    assert [c.__dict__ | {"path": ""} for c in found.counts] == [c.__dict__ | {"path": ""} for c in expected.counts]
    ((_, one),), ((_, other),) = found.isolated_atoms, expected.isolated_atoms
    assert one.get_potential_energy() == other.get_potential_energy() == -0.125
    whole = read(tmp_path / "data.extxyz", validation_split=None, validation=[str(tmp_path / "data.extxyz")]).validation
    assert store.digests == whole.digests
    table, expected_table = store.table, whole.table
    for f in fields(table):
        np.testing.assert_array_equal(getattr(table, f.name), getattr(expected_table, f.name))
    assert table.num_edges.tolist() == [s.graph.num_edges for s in whole] and table.has_stress.sum() == 3
    assert found.names["train"][0] == f"frame 0 of {tmp_path}/data.graphs (frame 0 of {tmp_path}/data.extxyz)"
    assert store.name(3) == f"frame 3 of {tmp_path}/data.graphs (frame 4 of {tmp_path}/data.extxyz)"


def test_statistics_are_those_of_the_file(folder):
    one, other = (compute_statistics(read(folder / f"train.{end}").train, ["Ar"]) for end in ("extxyz", "graphs"))
    assert one == other and one.num_frames == 22 and one.energy_rms > 0


@pytest.mark.parametrize("together", [1, 3, 1000])
def test_statistics_do_not_depend_on_how_many_frames_are_read_together(tmp_path, monkeypatch, together):
    ase.io.write(tmp_path / "data.extxyz", [*mixed_frames(), *crystals(9, 7)])
    samples = read(convert(tmp_path / "data.extxyz", tmp_path / "data.graphs").path).train
    expected = compute_statistics(samples, ["Ar"])
    monkeypatch.setattr(statistics, "_BATCH", together)
    assert compute_statistics(samples, ["Ar"]) == compute_statistics(iter(list(samples)), ["Ar"]) == expected


def test_a_store_and_a_file_together(folder):
    files = [str(folder / "train.graphs"), str(folder / "test.extxyz")]
    data = AtomsData(DataConfig(train=files, validation_split=5), POTENTIAL)
    plain = AtomsData(DataConfig(train=[str(folder / "train.extxyz"), files[1]], validation_split=5), POTENTIAL)
    assert_same_samples(data.train, plain.train)
    assert sorted(s.index.item() for s in data.train) == list(range(25))
    again = AtomsData(DataConfig(train=files, validation_split=5), POTENTIAL)
    other = AtomsData(DataConfig(train=files, validation_split=5, split_seed=1), POTENTIAL)
    assert data.digests == again.digests and data.digests["train"] != other.digests["train"]


def assert_same_batch(batch, expected):
    """The same bits in all tensors, NaN included."""
    for one, other in zip(batch.tensors, expected.tensors, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def test_batches_are_those_of_the_samples(tmp_path):
    """Batches of a store, a file in memory, and both together equal what PyTorch makes of their samples one by one."""
    ase.io.write(tmp_path / "data.extxyz", mixed_frames())
    convert(tmp_path / "data.extxyz", tmp_path / "data.graphs")
    for files in (["data.graphs"], ["data.extxyz"], ["data.graphs", "data.extxyz", "data.graphs"]):
        data = AtomsData(DataConfig(train=[str(tmp_path / f) for f in files], validation_split=1), POTENTIAL)
        for indices in ([0], [3, 1, 4], list(range(len(data.train)))[::-1]):
            samples = [data.train[k] for k in indices]
            names = {f.name for f in fields(Sample)} - {"graph"}
            labels = {name: torch.cat([getattr(s, name) for s in samples]) for name in names}
            expected = Sample(graph=batch_graphs([s.graph for s in samples]), **labels)
            assert expected.index.tolist() == indices
            for batch in (data.train.batch(indices), collate(samples), pickle.loads(pickle.dumps(expected))):
                assert_same_batch(batch, expected)
            assert_same_batch(collate([expected, expected]), collate([*samples, *samples]))
        parts = list(data.train.in_batches(4))
        assert [k for part in parts for k in part.index.tolist()] == list(range(len(data.train)))
        assert data.train.__getitems__([]) == []


class Operations(TorchDispatchMode):
    """Counts the operations of PyTorch but for views, which cost a GPU nothing."""

    VIEWS = {"alias", "detach", "lift_fresh", "select", "slice", "unbind", "view"}

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in self.VIEWS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_samples_that_stay_on_a_device(tmp_path, device):
    """The same bits as batches of samples, by few operations for any number of frames."""
    ase.io.write(tmp_path / "data.extxyz", mixed_frames())
    samples = read(tmp_path / "data.extxyz", validation_split=1).train
    stacked = StackedSamples(samples, torch.device(device))
    counts = []
    for indices in ([0], [5], [3, 1, 4], [2, 2], list(range(len(samples)))[::-1]):
        with Operations() as operations:
            batch = stacked.batch(indices)
        counts.append(operations.count)
        assert all(t.is_contiguous() and t.device.type == device for t in batch.tensors)
        assert_same_batch(batch.to("cpu"), samples.batch(indices))
    assert max(counts) < 25
    assert len(stacked) == len(samples) and stacked.__getitems__([]) == []
    assert_same_samples([stacked[-1].to("cpu")], [samples[len(samples) - 1]])
    with pytest.raises(IndexError, match=f"none with index {len(samples)}"):
        stacked[len(samples)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_batches_in_pinned_memory(folder):
    batch = read(folder / "train.graphs").train.batch([3, 0, 7])
    pinned = batch.pin_memory()
    assert all(t.is_pinned() for t in pinned.tensors)
    on_gpu = pinned.to("cuda")
    assert on_gpu.energy.device.type == "cuda"
    for found in (pinned, on_gpu.to("cpu")):
        assert_same_batch(found, batch)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_loaders_pin_memory_for_gpus_alone(folder, monkeypatch, device, pinned):
    monkeypatch.setattr(AtomsData, "_device", torch.device(device))
    data = read(folder / "train.graphs", keep_on_device=False)
    loaders = [data.train_dataloader(), data.val_dataloader()]
    assert [loader.pin_memory for loader in loaders] == [pinned, pinned]


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_batches_in_one_buffer(folder, workers):
    """A worker hands one file of shared memory over for each batch, and a GPU takes one copy."""
    data = read(folder / "train.graphs", workers=workers, batch_size=5)
    seen = 0
    for batch in data.train_dataloader():
        seen += batch.graph.num_graphs
        starts = np.array([t.data_ptr() for t in batch.tensors])
        ends = starts + [t.numel() * t.element_size() for t in batch.tensors]
        assert (starts % 64 == 0).all() and (starts[1:] - ends[:-1] < 64).all()
        assert_same_batch(batch, collate([data.train[k] for k in batch.index.tolist()]))
    assert seen == len(data.train)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_that_of_the_file_to_the_last_bit(folder, tmp_path, workers):
    assert run(folder, tmp_path / "file") == 0
    data = {"train": "train.graphs", "test": "test.graphs", "workers": workers}
    assert run(folder, tmp_path / "store", data=data) == 0
    assert_same_end(tmp_path / "file", tmp_path / "store")
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("file", "store")]
    assert reports[0]["metrics"] == reports[1]["metrics"]


def test_a_run_from_a_store_is_resumed(folder, tmp_path, capsys):
    data = {"train": "train.graphs", "workers": 0}
    assert run(folder, tmp_path / "whole", data=data, stop={"max_epochs": 4}) == 0
    assert run(folder, tmp_path / "run", data=data, stop={"max_epochs": 2}) == 0
    shutil.copy(folder / "train.graphs", tmp_path / "elsewhere.graphs")
    moved = {"train": str(tmp_path / "elsewhere.graphs"), "workers": 1}
    assert run(folder, tmp_path / "run", "--resume", data=moved, stop={"max_epochs": 4}) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "run")

    frames = ase.io.read(folder / "train.extxyz", ":")
    frames[3].calc.results["energy"] += 1e-6
    ase.io.write(tmp_path / "other.extxyz", frames)
    convert(tmp_path / "other.extxyz", tmp_path / "other.graphs")
    other = {"train": str(tmp_path / "other.graphs")}
    assert run(folder, tmp_path / "run", "--resume", data=other, stop={"max_epochs": 5}) == 1
    assert "data differ from those of the run to resume in energy" in capsys.readouterr().err


def lengths(store, indices, queue):
    queue.put([store[k].graph.edge_vectors.norm(dim=1).sum().item() for k in indices])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_store(folder, method):
    store = GraphStore(folder / "train.graphs")
    expected = [store[k].graph.edge_vectors.norm(dim=1).sum().item() for k in range(24)]  # this process has it open
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    orders = [list(range(24)), list(range(23, -1, -1))]
    processes = [context.Process(target=lengths, args=(store, order, queue)) for order in orders]
    for process in processes:
        process.start()
    found = [queue.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found) == sorted([expected, expected[::-1]])
    assert store[5].graph.edge_vectors.norm(dim=1).sum().item() == expected[5]
    copy = pickle.loads(pickle.dumps(store))
    assert_same_samples([copy[7]], [store[7]])


def other(**changes):
    return AllegroConfig(**{**MODEL, **changes})


@pytest.mark.parametrize(
    ("potential", "keys", "expected"),
    [
        (other(cutoff=1.7), {}, r"cutoffs of the model are \[\[1.7\]\], those of the store \[\[1.8\]\]"),
        (other(type_names=["Ar", "Ne"]), {}, r"model.type_names is \['Ar', 'Ne'\], the store has \['Ar'\]"),
        (POTENTIAL, {"energy_key": "E"}, r"data.energy_key is \['E'\], the store was made with None"),
        (POTENTIAL, {"weight_key": None}, "data.weight_key is None, the store was made with config_weight"),
    ],
)
def test_a_store_for_another_training_file_is_refused(folder, potential, keys, expected):
    again = f"make it anew: nequip-md-data convert {folder}/train.extxyz -o {folder}/train.graphs --train-file"
    with pytest.raises(NequIPMDError, match=f"{folder}/train.graphs .*{expected}.*{again}"):
        read(folder / "train.graphs", potential, **keys)


def test_pair_cutoffs_belong_to_a_store(tmp_path):
    pairs = {"H": {"H": 1.1}}
    water = {"kind": "allegro", "type_names": ["H", "O"], "cutoff": 1.6}
    atoms = Atoms("OHH", [[0, 0, 0], [0.9, 0, 0], [0, 0.9, 0]], calculator=None)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    ase.io.write(tmp_path / "data.extxyz", [atoms] * 3)
    store = convert(tmp_path / "data.extxyz", tmp_path / "data.graphs", AllegroConfig(**water, pair_cutoffs=pairs))
    assert store[0].graph.num_edges == 4  # no two H
    assert len(read(tmp_path / "data.graphs", AllegroConfig(**water, pair_cutoffs=pairs)).train) == 1
    with pytest.raises(NequIPMDError, match="cutoffs of the model"):
        read(tmp_path / "data.graphs", AllegroConfig(**water))


def rewritten(path, change):
    with lmdb.open(str(path), subdir=False, lock=False) as environment, environment.begin(write=True) as transaction:
        change(transaction)


def set_version(transaction):
    content = json.loads(transaction.get(b"metadata"))
    transaction.put(b"metadata", json.dumps({**content, "version": 99}).encode())


DAMAGES = {
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 5000), "is cut off: it has .* copy it again"),
    "text": (lambda path: path.write_text("24\nno store\n" * 1000), "is not a store of graphs, or it is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is not a store of graphs, or it is damaged"),
    "other": (lambda path: rewritten(path, lambda t: t.delete(b"metadata")), "an LMDB file, but not a store"),
    "version": (lambda path: rewritten(path, set_version), "has format 99, this .* reads format 1; make it anew: nequip"),
    "missing": (lambda path: path.unlink(), "cannot read the store .*: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_store_is_refused(folder, tmp_path, damage):
    change, expected = DAMAGES[damage]
    path = Path(shutil.copy(folder / "train.graphs", tmp_path / "copy.graphs"))
    change(path)
    with pytest.raises(NequIPMDError, match=f"copy.graphs.*{expected}|{expected}"):
        GraphStore(path)


def test_a_store_appears_when_it_is_complete(folder, tmp_path):
    frames = crystals(70, 3)
    ase.io.write(tmp_path / "bad.extxyz", [*frames, Atoms("Ne")])
    path = Path(shutil.copy(folder / "train.graphs", tmp_path / "kept.graphs"))
    before = path.read_bytes()
    for output in (path, tmp_path / "new.graphs"):
        with pytest.raises(NequIPMDError, match="frame 70 of .*bad.extxyz: the model has no type for Ne"):
            convert(tmp_path / "bad.extxyz", output)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.extxyz", "kept.graphs"]
    with pytest.raises(NequIPMDError, match="no frame of .*bad.extxyz is left to write"):
        convert(tmp_path / "bad.extxyz", path, refuse=lambda atoms, found: "none is wanted")


def test_a_full_disk(folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(NequIPMDError, match="cannot write the store: .*is the disk full"):
            convert(folder / "train.extxyz", tmp_path / "big.graphs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_replaced_is_noticed(folder, tmp_path):
    path = tmp_path / "data.graphs"
    store = convert(folder / "train.extxyz", path)
    energy = store[0].energy.item()
    replaced = convert(folder / "test.extxyz", path)
    with pytest.raises(NequIPMDError, match="was replaced while it was in use"):
        store[0]
    assert len(replaced) == 6 and replaced[0].energy.item() != energy


def test_indices_beyond_the_end(folder):
    store, samples = GraphStore(folder / "train.graphs"), read(folder / "train.graphs").train
    for sequence, index in ((store, 24), (store, -1), (samples, 22), (samples, -23)):
        with pytest.raises(IndexError, match=f"none with (number|index) {index}"):
            sequence[index]
    assert samples[-1].index.item() == 21


def test_real_data(tmp_path, data_folder):
    path = data_folder / "3bpa" / "test_300K.extxyz"
    potential = AllegroConfig(type_names=["H", "C", "N", "O"], cutoff=5.0)
    store = convert(path, tmp_path / "3bpa.graphs", potential)
    whole = read(path, potential, validation_split=None, validation=[str(path)]).validation
    order = np.random.default_rng(0).permutation(len(store))[:50].tolist()
    assert_same_samples([store[k] for k in order], [whole.sources[0][k] for k in order])
    assert store.digests == whole.digests and len(store) == 1669


def test_info_says_what_a_store_holds(tmp_path, capsys):
    frames = [*crystals(3, 1), *crystals(1, 2, periodic=False)]
    ase.io.write(tmp_path / "data.extxyz", frames)
    store = convert(tmp_path / "data.extxyz", tmp_path / "data.graphs")
    capsys.readouterr()  # what the conversion has printed
    assert info([str(tmp_path / "data.graphs"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["frames"], facts["atoms"], facts["types"]) == (4, 32, ["Ar"])
    assert facts["edges"] == sum(sample.graph.num_edges for sample in store)
    stresses = sum(not bool(sample.stress.isnan().any()) for sample in store)
    assert facts["labels"] == {"energy": 4, "forces": 4, "stress": stresses}
    assert facts["made from"] == [str(tmp_path / "data.extxyz")]
    assert info([str(tmp_path / "absent.graphs")]) == 1
    assert "absent.graphs" in capsys.readouterr().err
