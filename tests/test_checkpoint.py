"""The native checkpoint format: exact round trips, and a clear message for every kind of bad file."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from ase.build import molecule
from safetensors.torch import load_file, save_file

import nequip_md
from nequip_md.checkpoint import checkpoint_sha256, load, read_info, save
from nequip_md.errors import NequIPMDError
from nequip_md.graph import Structure, build_graph
from nequip_md.model import AllegroConfig, NequIPConfig, build_model, energy_and_gradient

SHARED = {"type_names": ["H", "O"], "cutoff": 3.5, "avg_num_neighbors": 3.0}
ALLEGRO = {**SHARED, "l_max": 1, "num_layers": 2, "num_scalar_features": 8, "num_tensor_features": 4}
CONFIGS = {
    "allegro": AllegroConfig(**ALLEGRO, energy_shifts={"H": -13.6, "O": -432.1}, energy_scales=0.3),
    "allegro_fp64": AllegroConfig(**ALLEGRO, dtype="float64", parity=False, path_channel_coupling=False),
    "allegro_spline": AllegroConfig(**ALLEGRO, radial_embedding={"kind": "spline", "num_splines": 5, "spline_span": 3}),
    "allegro_trainable": AllegroConfig(
        **ALLEGRO,
        radial_embedding={"kind": "bessel", "bessel_trainable": True},
        energy_shifts=-2.0,
        energy_scales=1.5,
        energy_shifts_trainable=True,
        energy_scales_trainable=True,
    ),
    "allegro_pairs": AllegroConfig(
        **ALLEGRO,
        pair_cutoffs={"H": {"O": 2.5}, "O": 3.0},
        pair_potential={"chemical_species": ["H", "O"]},
    ),
    "nequip": NequIPConfig(**SHARED, l_max=1, num_layers=2, num_features=4, radial_mlp_width=8),
}
TRAINING = {"epoch": 12, "metrics": {"forces_rmse": 0.034567890123456789}, "statistics": {"n_bar": {"H": 3.25}}}


def evaluate(model):
    graph = build_graph(Structure.from_ase(molecule("H2O2"), model.type_names), model.config.cutoff_matrix())
    return energy_and_gradient(model, graph.edge_vectors, graph.edge_index, graph.row_ptr, graph.node_types)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A valid checkpoint; tests that spoil it take a copy of its bytes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("native") / "model.nqmd"
    save(path, build_model(CONFIGS["allegro"]), training=TRAINING)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_identical(name, tmp_path):
    torch.manual_seed(1)
    model = build_model(CONFIGS[name])
    with torch.no_grad():  # trainable scales, shifts and roots included: nothing may come back from its default
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    path = tmp_path / "model.nqmd"
    save(path, model, training=TRAINING)
    generator = torch.random.get_rng_state()
    copy = nequip_md.load_checkpoint(path)
    assert torch.equal(torch.random.get_rng_state(), generator), "loading must not disturb the random numbers"
    assert copy.config == model.config and not copy.training
    energy, gradient = evaluate(model)
    energy_copy, gradient_copy = evaluate(copy)
    assert gradient.abs().max() > 1e-4, "no signal to compare"
    assert torch.equal(energy, energy_copy) and torch.equal(gradient, gradient_copy)


def test_info_needs_no_weights_and_the_header_is_plain_json(written):
    info = read_info(written)
    assert info.config == CONFIGS["allegro"] and info.training == TRAINING
    assert info.source == f"nequip-md {nequip_md.__version__}"
    content = written.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["nequip_md"])
    assert header["config"]["type_names"] == ["H", "O"] and header["format_version"] == 1


def test_sha256(written):
    assert checkpoint_sha256(written) == hashlib.sha256(written.read_bytes()).hexdigest()


def test_a_failed_save_leaves_the_old_file(written, tmp_path, monkeypatch):
    path = tmp_path / "model.nqmd"
    path.write_bytes(written.read_bytes())
    model = build_model(CONFIGS["allegro_fp64"])
    with pytest.raises(NequIPMDError, match="plain JSON values"):
        save(path, model, training={"metric": torch.ones(1)})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(NequIPMDError, match="model.nqmd: No space left"):
        save(path, model)
    assert path.read_bytes() == written.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.nqmd"]
    with pytest.raises(NequIPMDError, match="cannot write checkpoint .*absent"):
        save(tmp_path / "absent" / "model.nqmd", model)


# Ways to spoil a valid checkpoint: each takes (its bytes, a path to write to).


def _rewrite(path: Path, content: bytes, tensors=None, header=None):
    """The checkpoint with changed tensors (a function of the dictionary) or a changed header (likewise), without a digest."""
    path.write_bytes(content)
    state = load_file(path)
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["nequip_md"])
    del metadata["sha256"]
    if tensors:
        tensors(state)
    text = json.dumps(metadata) if header is None else header(metadata)
    save_file(state, path, metadata={"nequip_md": text})


def _header(**changes):
    def change(metadata):
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            target = metadata
            for parent in parents:
                target = target[parent]
            target[last] = value
        return json.dumps(metadata)

    return lambda path, content: _rewrite(path, content, header=change)


def _tensors(change):
    return lambda path, content: _rewrite(path, content, tensors=change)


def _zip(path, _):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model.so", b"")


WEIGHT = "readout.weights.0"
BAD_FILES = {
    "missing": (lambda path, content: None, "does not exist"),
    "pipe": (lambda path, content: os.mkfifo(path), "is a device or pipe"),
    "old PyTorch file": (
        lambda path, content: torch.save({}, path, _use_new_zipfile_serialization=False),
        "is not a checkpoint",
    ),
    "training no table": (_header(training=[1]), "unreadable header"),
    "directory": (lambda path, content: path.mkdir(), "is a directory"),
    "empty": (lambda path, content: path.write_bytes(b""), "is not a checkpoint"),
    "text": (lambda path, content: path.write_text("units metal\natom_style atomic\n"), "is not a checkpoint"),
    "truncated": (lambda path, content: path.write_bytes(content[:-7]), "damaged or cut short"),
    "header cut": (lambda path, content: path.write_bytes(content[:100]), "damaged or cut short"),
    "other safetensors": (lambda path, content: save_file({"a": torch.ones(2)}, path), "not a checkpoint of nequip-md"),
    "header not JSON": (lambda path, content: _rewrite(path, content, header=lambda _: "{oops"), "unreadable header"),
    "no version": (lambda path, content: _rewrite(path, content, header=lambda _: "{}"), "header.*format_version"),
    "newer format": (_header(format_version=2, nequip_md_version="9.9"), r"version 2;.*by nequip-md 9\.9: install"),
    "unknown option": (_header(config__wings=2), "wings: Extra inputs"),
    "unknown kind": (_header(config__kind="mace"), "not valid.*mace"),
    "impossible option": (_header(config__num_layers=0), "num_layers"),
    "missing tensor": (_tensors(lambda state: state.pop(WEIGHT)), rf"{WEIGHT} is missing"),
    "foreign tensor": (_tensors(lambda state: state.update(extra=torch.ones(1))), "extra does not belong"),
    "wrong shape": (_tensors(lambda state: state.update({WEIGHT: torch.ones(3, 2)})), rf"{WEIGHT} has shape \[3, 2\]"),
    "wrong dtype": (_tensors(lambda state: state.update({WEIGHT: state[WEIGHT].double()})), f"{WEIGHT} is float64"),
    "many problems": (_tensors(lambda state: state.clear()), "is missing.*and [0-9]+ more"),
    "compiled artifact": (_zip, "compiled model of another program, not a checkpoint"),
    "other PyTorch file": (lambda path, content: torch.save({"a": torch.ones(2)}, path), "not a checkpoint of nequip"),
    "damaged PyTorch file": (lambda path, content: path.write_bytes(b"PK\x03\x04" + content[:64]), "damaged or cut"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name, written, tmp_path):
    spoil, message = BAD_FILES[name]
    path = tmp_path / "model.nqmd"
    spoil(path, written.read_bytes())
    with pytest.raises(NequIPMDError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value), "the message names the file"


class Hostile:
    """Unpickling an instance creates the file ``mark``."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_pickled_code_runs_only_if_allowed(tmp_path):
    path, mark = tmp_path / "model.ckpt", tmp_path / "was-here"
    torch.save({"state_dict": {}, "hyper_parameters": Hostile(mark)}, path)
    with pytest.raises(NequIPMDError, match=r"posix\.mkdir.*would execute code.*--allow-pickle.*allow_pickle=True"):
        nequip_md.load_checkpoint(path)
    assert not mark.exists()
    with pytest.raises(NequIPMDError, match="not a checkpoint of nequip-train"):
        nequip_md.load_checkpoint(path, allow_pickle=True)
    assert mark.exists(), "allow_pickle is what its name says"


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_code_in_packaged_models_never_runs(tmp_path, allow_pickle):
    path, mark = tmp_path / "model.nequip.zip", tmp_path / "was-here"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/model/eager_model.pkl", pickle.dumps({"model": Hostile(mark)}))
        archive.writestr("m/model/package_metadata.txt", "versions: {nequip: 0.19.1}")
        archive.writestr("m/model/config.yaml", "training_module: {model: {_target_: nequip.model.NequIPGNNModel}}")
        archive.writestr("m/os.py", f"import pathlib; pathlib.Path({str(mark)!r}).touch()")
    with pytest.raises(NequIPMDError):
        nequip_md.load_checkpoint(path, allow_pickle=allow_pickle)
    assert not mark.exists()
