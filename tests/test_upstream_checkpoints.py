"""Upstream's checkpoints: ours must compute what upstream computes, and refuse by name what it cannot.

Checkpoints of the installed upstream are made here, by really running ``nequip-train`` and ``nequip-package``. Those of
older versions, with reference results by the same versions, lie in ``data/upstream``, where
``support/make_upstream_data.py`` puts them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from ase import Atoms

import nequip_md
from nequip_md.checkpoint import read_info, save
from nequip_md.checkpoint.upstream import convert, read_upstream
from nequip_md.errors import NequIPMDError
from nequip_md.files import FileKind, file_kind
from nequip_md.graph import Structure, build_graph, forces_from_gradient
from nequip_md.model import energy_and_gradient
from support.upstream_train import OF_THIS_VERSION as CASES
from support.upstream_train import PACKAGED

HERE = Path(__file__).resolve().parent
OLDER = sorted((HERE / "data" / "upstream").glob("*.ckpt"))
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # relative
MIN_FORCE = 1e-3  # eV/angstrom: less is no signal
MIN_EMA_EFFECT = 1e-4  # relative difference of forces between averaged and last weights


def compare(model, reference: Path) -> tuple[float, float]:
    """Largest relative differences of energies and forces from upstream's records."""
    energies, forces = [], []
    for record in json.loads(reference.read_text())["frames"]:
        atoms = Atoms(record["symbols"], record["positions"], cell=record["cell"], pbc=record["pbc"])
        graph = build_graph(Structure.from_ase(atoms, model.type_names), model.config.cutoff_matrix())
        tensors = graph.edge_vectors, graph.edge_index, graph.row_ptr, graph.node_types
        energy, gradient = energy_and_gradient(model, *tensors)
        expected = torch.tensor(record["forces"], dtype=torch.float64)
        assert expected.abs().max() > MIN_FORCE
        energies.append(abs(energy.sum().item() - record["energy"]) / abs(record["energy"]))
        forces.append(((forces_from_gradient(graph, gradient) - expected).abs().max() / expected.abs().max()).item())
    return max(energies), max(forces)


def assert_same(model, reference: Path) -> None:
    energy, force = compare(model, reference)
    tolerance = TOLERANCE[model.config.dtype]
    assert energy < tolerance and force < tolerance, f"energy off by {energy:.1e}, forces by {force:.1e} (relative)"


@pytest.mark.parametrize("case", CASES)
def test_checkpoint(upstream_models, case):
    assert_same(nequip_md.load_checkpoint(upstream_models / f"{case}.ckpt"), upstream_models / f"{case}.json")


@pytest.mark.parametrize("case", PACKAGED)
def test_packaged_model(upstream_models, case):
    path = upstream_models / f"{case}.nequip.zip"
    assert file_kind(path) is FileKind.UPSTREAM_PACKAGE
    assert_same(nequip_md.load_checkpoint(path), upstream_models / f"{case}.json")


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_older_versions(path):
    assert_same(nequip_md.load_checkpoint(path), path.with_suffix(".json"))
    training = json.loads(json.dumps(read_info(path).training))
    assert path.stem.startswith(f"nequip-{training['upstream_versions']['nequip']}_")


def test_older_versions_are_there():
    assert len(OLDER) >= 8


@pytest.mark.parametrize("case", ["allegro", "allegro_spline", "nequip_order"])
def test_averaged_weights_are_the_ones_used(upstream_models, case):
    file = read_upstream(upstream_models / f"{case}.ckpt", allow_pickle=False)
    assert file.ema_weights is not None
    assert_same(convert(file), upstream_models / f"{case}.json")
    _, difference = compare(convert(dataclasses.replace(file, ema_weights=None)), upstream_models / f"{case}.json")
    assert difference > MIN_EMA_EFFECT, "last and averaged weights are too close for this test to tell them apart"


@pytest.mark.parametrize("case", ["allegro_plain", "allegro_spline", "nequip_plain", "modified"])
def test_as_native_checkpoint(upstream_models, tmp_path, case):
    source = upstream_models / f"{case}.ckpt"
    model, info = nequip_md.load_checkpoint(source), read_info(source)
    save(tmp_path / "model.nqmd", model, training=info.training)
    copy = nequip_md.load_checkpoint(tmp_path / "model.nqmd")
    assert copy.config == model.config == info.config
    assert read_info(tmp_path / "model.nqmd").training["upstream_versions"]["nequip"]
    assert compare(copy, upstream_models / f"{case}.json") == compare(model, upstream_models / f"{case}.json")


def test_configuration_carries_the_stored_shifts(upstream_models):
    """A modifier, or training, changes them after the configuration was written."""
    config, plain = (
        read_info(upstream_models / "modified.ckpt").config,
        read_info(upstream_models / "nequip.ckpt").config,
    )
    assert config.energy_shifts == {"Cu": plain.energy_shifts, "Al": 0.25}
    trained_shifts = read_info(upstream_models / "from_checkpoint.ckpt").config
    assert trained_shifts.energy_shifts_trainable and trained_shifts.energy_shifts["Al"] != 0.25
    assert trained_shifts.energy_shifts["Al"] == pytest.approx(0.25, abs=0.2)


# The same model in upstream's other words gives the same configuration.


def _full_allegro(section):
    section.update(
        _target_="allegro.model.FullAllegroModel",
        irreps_edge_sh="1x0e+1x1o",
        tensor_track_allowed_irreps="1x0e+1x0o+1x1e+1x1o",
    )
    del section["l_max"]


def _full_nequip(section):
    layers = section.pop("num_layers")
    del section["l_max"], section["num_features"]
    section.update(
        _target_="nequip.model.FullNequIPGNNModel",
        irreps_edge_sh="1x0e+1x1o",
        type_embed_num_features=4,
        feature_irreps_hidden=["4x0e+4x0o+4x1e+4x1o"] * (layers - 1) + ["4x0e"],
        **{key: [section[key]] * layers for key in ("radial_mlp_depth", "radial_mlp_width")},
    )


def _wrapped(section):
    inner = dict(section)
    section.clear()
    section.update(_target_="nequip.model.modify", model=inner, modifiers=[{"modifier": "enable_OpenEquivariance"}])


SAME = {
    "full allegro": ("allegro", _full_allegro),
    "full nequip": ("nequip", _full_nequip),
    "preset": (
        "nequip",
        lambda s: s.update(
            _target_="nequip.model.PresetNequIPGNNModel", preset="S", parity=True, type_embed_num_features=4
        ),
    ),
    "long name": ("allegro", lambda s: s.update(_target_="allegro.model.allegro_models.AllegroModel")),
    "accelerated": ("nequip", _wrapped),
    "defaults and switches": ("allegro", lambda s: s.update(parity=True, compile_mode="compile", do_derivatives=False)),
}


@pytest.mark.parametrize("name", SAME)
def test_other_words_for_the_same_model(upstream_models, name):
    case, change = SAME[name]
    file = read_upstream(upstream_models / f"{case}.ckpt", allow_pickle=False)
    section = json.loads(json.dumps(file.model_config))
    change(section)
    assert_same(convert(dataclasses.replace(file, model_config=section)), upstream_models / f"{case}.json")


# Options that are not implemented: (case, change of the model section, versions, message).

NOW: dict[str, str] = {}
REFUSED = {
    "unknown option": ("allegro", {"wings": 2}, NOW, "'wings' with value 2 is not implemented"),
    "unknown model": ("allegro", {"_target_": "mace.modules.MACE"}, NOW, "'mace.modules.MACE' is not implemented"),
    "backward init": ("allegro", {"forward_normalize": False}, NOW, "'forward_normalize' with value False"),
    "shared weights": ("allegro", {"weight_individual_irreps": False}, NOW, "'weight_individual_irreps'"),
    "nonlinearity": ("allegro", {"readout_mlp_nonlinearity": "tanh"}, NOW, "'readout_mlp_nonlinearity'.* 'tanh'"),
    "null as a word": ("allegro", {"readout_mlp_nonlinearity": "null"}, NOW, "'readout_mlp_nonlinearity'.* 'null'"),
    "half precision": ("allegro", {"model_dtype": "bfloat16"}, NOW, "'model_dtype' with value 'bfloat16'"),
    "large l": ("allegro", {"l_max": 5}, NOW, "l_max"),
    "list of shifts": ("allegro", {"per_type_energy_shifts": [1.0, 2.0]}, NOW, "'per_type_energy_shifts'"),
    "Lennard-Jones": (
        "allegro",
        {"pair_potential": {"_target_": "nequip.nn.pair_potential.LennardJones"}},
        NOW,
        "'pair_potential' with value 'nequip.nn.pair_potential.LennardJones'",
    ),
    "ZBL units": ("allegro_plain", {"pair_potential": {"units": "real"}}, NOW, "'units' with value 'real'"),
    "ZBL envelope": ("allegro_plain", {"pair_potential": {"polynomial_cutoff_p": 4.0}}, NOW, "'polynomial_cutoff_p'"),
    "embedding": ("allegro", {"radial_chemical_embed": {"_target_": "mine.Embed"}}, NOW, "'radial_chemical_embed'"),
    "embedding option": ("allegro", {"radial_chemical_embed": {"scale": 3}}, NOW, "BesselScalarEmbed: option 'scale'"),
    "irreps": (
        "allegro",
        {
            "_target_": "allegro.model.FullAllegroModel",
            "irreps_edge_sh": "1x0e+1x1o",
            "tensor_track_allowed_irreps": "1x0e+1x1e",
        },
        NOW,
        "'tensor_track_allowed_irreps'",
    ),
    "resnet": ("nequip", {"convnet_resnet": True}, NOW, "'convnet_resnet' with value True"),
    "no self-connection": ("nequip", {"convnet_sc": False}, NOW, "'convnet_sc' with value False"),
    "learnable shift": ("nequip", {"learnable_shift": True}, NOW, "'learnable_shift'"),
    "norm gate": ("nequip", {"convnet_nonlinearity_type": "norm"}, NOW, "'convnet_nonlinearity_type'.* 'norm'"),
    "graph fields": (
        "nequip",
        {"categorical_graph_field_embed": [{"field": "charge"}]},
        NOW,
        "'categorical_graph_field_embed'",
    ),
    "modifier": (
        "modified",
        {"modifiers": [{"modifier": "enable_LAMMPSMLIAPGhostExchange"}]},
        NOW,
        "'modifier' with value 'enable_LAMMPSMLIAPGhostExchange'",
    ),
    "modifier option": (
        "modified",
        {"modifiers": [{"modifier": "modify_PerTypeScaleShift", "bias": 1}]},
        NOW,
        "'bias' with value 1",
    ),
    "lost package": (
        "allegro",
        {"_target_": "nequip.model.ModelFromPackage", "package_path": "/gone/base.nequip.zip"},
        NOW,
        "trained from another file .*'/gone/base.nequip.zip'.*beside allegro.ckpt",
    ),
    "too old": ("nequip", {}, {"nequip": "0.6.2"}, "nequip 0.6.2 is too old"),
    "SO(3) features": ("nequip", {"parity": False}, {"nequip": "0.15.0"}, "nequip < 0.16: option 'parity'.* False"),
    "old ZBL envelope": (
        "allegro_plain",
        {"radial_chemical_embed": {"polynomial_cutoff_p": 5}},
        {"nequip": "0.16.2"},
        "'polynomial_cutoff_p' with value 5",
    ),
    "scattered features": (
        "allegro",
        {"scatter_features": True},
        {"nequip": "0.8.0", "allegro": "0.6.0"},
        "'scatter_features' with value True",
    ),
    "SO(3) tensors": (
        "allegro",
        {"parity_setting": "so3", "scalar_embed": {}},
        {"nequip": "0.7.0", "allegro": "0.4.0"},
        "0.4: option 'parity_setting' with value 'so3'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(upstream_models, name):
    case, change, versions, message = REFUSED[name]
    file = read_upstream(upstream_models / f"{case}.ckpt", allow_pickle=False)
    section = json.loads(json.dumps(file.model_config))
    for key, value in change.items():
        nested = isinstance(value, dict) and isinstance(section.get(key), dict)
        section[key] = {**section[key], **value} if nested else value
    with pytest.raises(NequIPMDError, match=message):
        convert(dataclasses.replace(file, model_config=section, versions={**file.versions, **versions}))


# Checkpoints whose content does not fit: each changes the dictionary that torch.load gives.

NETWORK = "model.sole_model.model.func."


def _add_tensor(content):
    state = content["state_dict"]
    content["state_dict"] = {key: value for key, value in state.items() if not key.startswith("ema.")}
    content["state_dict"][f"{NETWORK}wings.weight"] = torch.ones(2)


def _swap(content):
    content["state_dict"]["ema._extra_state"]["is_holding_ema_weights"] = False


def _rename_model(content):
    state = content["state_dict"]
    content["state_dict"] = {key.replace("sole_model", "first"): value for key, value in state.items()}


DAMAGED = {
    "foreign tensor": (_add_tensor, "1 tensor.* nothing that nequip-md implements: 'wings.weight'"),
    "lost tensor": (
        lambda c: c["state_dict"].pop(f"{NETWORK}per_type_energy_scale_shift.shifts"),
        "'per_type_energy_scale_shift.shifts' is missing",
    ),
    "other cutoff": (lambda c: c["hyper_parameters"]["model"].update(r_max=4.5), "_rmax_recip.*do not agree"),
    "other width": (lambda c: c["hyper_parameters"]["model"].update(num_scalar_features=8), "has shape"),
    "fewer averages": (lambda c: c["state_dict"].pop("ema.ema_weight_3"), "averaged .EMA. weights do not match"),
    "swapped averages": (_swap, "were swapped"),
    "several models": (_rename_model, "holds the models first"),
    "schedule-free": (
        lambda c: c["hyper_parameters"]["info_dict"]["training_module"].update(
            _target_="nequip.train.ScheduleFreeLightningModule"
        ),
        "'nequip.train.ScheduleFreeLightningModule'.*package",
    ),
    "not by nequip-train": (lambda c: c.pop("hyper_parameters"), "not a checkpoint of nequip-train"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(upstream_models, tmp_path, name):
    change, message = DAMAGED[name]
    content = torch.load(upstream_models / "allegro.ckpt", weights_only=True)
    change(content)
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(NequIPMDError, match=message):
        nequip_md.load_checkpoint(path)


def test_harmless_code_can_be_allowed(upstream_models, tmp_path):
    content = torch.load(upstream_models / "allegro.ckpt", weights_only=True)
    content["callbacks"]["mine"] = {"folder": Path("somewhere")}
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(NequIPMDError, match=r"pathlib\.\w+.*--allow-pickle"):
        nequip_md.load_checkpoint(path)
    assert_same(nequip_md.load_checkpoint(path, allow_pickle=True), upstream_models / "allegro.json")


def test_damaged_package(upstream_models, tmp_path):
    content = bytearray((upstream_models / "allegro.nequip.zip").read_bytes())
    start = content.index(b"eager_model.pkl") + 200
    content[start : start + 400] = bytes(400)
    path = tmp_path / "model.nequip.zip"
    path.write_bytes(content)
    with pytest.raises(NequIPMDError, match="is damaged: the checksum of '.*eager_model.pkl' in it is wrong"):
        nequip_md.load_checkpoint(path)
