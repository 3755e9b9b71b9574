"""Training files of upstream's nequip-train become files of ours that mean the same, by upstream's models and loss."""

import copy
import re

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT

from nequip_md.checkpoint import upstream_allegro, upstream_nequip
from nequip_md.graph import Structure, build_graph, forces_from_gradient
from nequip_md.model.build import build_model
from nequip_md.model.potential import energy_and_gradient
from nequip_md.training.cli import main
from nequip_md.training.config import load_config
from nequip_md.training.steps.loss import Error, loss
from support.upstream_nequip import evaluate_upstream, upstream_settings, upstream_state

STATISTICS = "${training_data_stats:%s}"
MODELS = {
    "nequip": {
        "_target_": "nequip.model.NequIPGNNModel", "num_layers": "${layers}", "l_max": 1, "num_features": 4,
        "radial_mlp_depth": 1, "radial_mlp_width": "${int_mul:${layers},3}", "num_bessels": 4, "compile_mode": "eager",
    },
    "allegro": {
        "_target_": "allegro.model.AllegroModel", "num_layers": "${layers}", "l_max": 1, "num_scalar_features": 6,
        "num_tensor_features": 2, "allegro_mlp_hidden_layers_width": 8, "readout_mlp_hidden_layers_width": 5,
        "scalar_embed_mlp_hidden_layers_width": 7, "per_edge_type_cutoff": {"Cu": 3.5, "Al": {"Cu": 3.2}},
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
    },
}  # fmt: skip
NUMBERS = {
    "avg_num_neighbors": 12.5,
    "per_type_energy_scales": {"Cu": 1.5, "Al": 0.7},
    "per_type_energy_shifts": {"Cu": -1.0, "Al": 2.0},
}


def upstream(kind):
    """A file of the schema that nequip 0.19 documents."""
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": 2}
    metrics = {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"forces_rmse": 1.0}}
    zbl = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": "${symbols}"}
    mapper = {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": "${symbols}"}
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "factor": 0.5, "patience": 3}
    early = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val0_epoch/forces_mae", "patience": 6}
    return {
        "run": ["train", "test"], "symbols": ["Cu", "Al"], "cutoff": 4.0, "layers": 2,
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule", "seed": 11,
            "split_dataset": {"file_path": "data.xyz", "train": 0.5, "val": 0.25, "test": 0.25},
            "key_mapping": {"REF_energy": "total_energy", "REF_forces": "forces"},
            "transforms": [
                mapper,
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": "${cutoff}"},
            ],
            "train_dataloader": loader, "val_dataloader": "${data.train_dataloader}",
            "stats_manager": {"_target_": "nequip.data.CommonDataStatisticsManager", "type_names": "${symbols}"},
        },
        "trainer": {
            "_target_": "lightning.Trainer", "max_epochs": 7, "accelerator": "cpu", "max_time": "01:02:03:04",
            "gradient_clip_val": 5.0, "precision": "64-true",
            "callbacks": [
                early, {"_target_": "nequip.train.callbacks.SoftAdapt", "beta": 1.1},
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule", "ema_decay": 0.9,
            "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": {"total_energy": 1.0, "forces": 4.0}},
            "val_metrics": metrics,
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.004, "amsgrad": True},
            "lr_scheduler": {"scheduler": plateau, "monitor": "val0_epoch/forces_rmse", "interval": "epoch"},
            "model": {
                "seed": 3, "model_dtype": "float64", "type_names": "${symbols}", "r_max": "${cutoff}", **MODELS[kind],
                "avg_num_neighbors": STATISTICS % "num_neighbors_mean",
                "per_type_energy_scales": STATISTICS % "per_type_forces_rms",
                "per_type_energy_shifts": STATISTICS % "per_atom_energy_mean",
                "pair_potential": zbl,
            },
        },
    }  # fmt: skip


def frames(count):
    rng = np.random.default_rng(2)
    found = []
    for seed in range(count):
        atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
        atoms.symbols = rng.choice(["Cu", "Al"], 4)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        labelled = atoms.copy()
        labelled.info["REF_energy"], labelled.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        found.append(labelled)
    return found


def converted(folder, content, capsys):
    """The text that the command prints."""
    (folder / "upstream.yaml").write_text(yaml.safe_dump(content))
    assert main([str(folder / "upstream.yaml"), "--from-nequip"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["nequip", "allegro"])
def test_the_converted_file_trains_the_same_model(tmp_path, capsys, kind):
    """Upstream builds its model from its file with numbers for the statistics; ours has its weights and energies."""
    from hydra.utils import get_method
    from omegaconf import OmegaConf

    text = converted(tmp_path, upstream(kind), capsys)
    (tmp_path / "train.yaml").write_text(text)
    ase.io.write(tmp_path / "data.xyz", frames(8))
    assert main([str(tmp_path / "train.yaml"), "--check"]) == 0
    assert "training data: 4 frames" in capsys.readouterr().out

    config = load_config(tmp_path / "train.yaml")
    potential = config.potential(lambda key, word: NUMBERS[key.replace("energy_", "per_type_energy_")])
    content = upstream(kind)
    content["training_module"]["model"].update(NUMBERS)
    if kind == "nequip":
        content["training_module"]["model"]["radial_mlp_width"] = 6
    options = OmegaConf.to_container(OmegaConf.create(content), resolve=True)["training_module"]["model"]
    torch.manual_seed(1)
    with upstream_settings():
        theirs = get_method(options.pop("_target_"))(**options).eval()
    ours = build_model(potential)
    converter = upstream_nequip if kind == "nequip" else upstream_allegro
    ours.load_state_dict(converter.state_from_upstream(potential, upstream_state(theirs)))
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) > 100

    atoms = frames(1)[0]
    reference = evaluate_upstream(theirs, potential, atoms)
    graph = build_graph(Structure.from_ase(atoms, potential.type_names), potential.cutoff_matrix())
    energies, gradient = energy_and_gradient(ours, *graph.tensors)
    assert np.abs(reference.forces).max() > 1e-3
    assert energies.sum().item() == pytest.approx(reference.energy, rel=1e-9)
    np.testing.assert_allclose(forces_from_gradient(graph, gradient).detach().numpy(), reference.forces, atol=1e-8)


def test_every_option_is_converted_or_named(tmp_path, capsys):
    text = converted(tmp_path, upstream("allegro"), capsys)
    config = yaml.safe_load(text)
    assert config["data"] == {
        "train": "data.xyz", "validation_split": 0.25, "test_split": 0.25, "split_seed": 11, "energy_key": "REF_energy",
        "force_key": "REF_forces", "batch_size": 2, "evaluation_batch_size": 2,
    }  # fmt: skip
    assert config["stop"] == {"max_epochs": 7, "max_time": "26:03:04", "patience": 6}
    assert config["optimizer"] == {"ema_decay": 0.9, "learning_rate": 0.004, "gradient_clip": 5.0}
    assert config["schedule"] == {"kind": "plateau", "factor": 0.5, "patience": 3, "min_learning_rate": 0.0}
    assert config["seed"] == 3 and config["device"] == "cpu"
    model = config["model"]
    assert model["avg_num_neighbors"] == model["energy_shifts"] == "auto"
    assert model["energy_scales"] == "force_rms_by_type"
    assert model["pair_potential"]["chemical_species"] == model["type_names"] == ["Cu", "Al"]
    comments = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    for expected in (
        "SoftAdapt has no equivalent", "trainer.precision: has no equivalent", "not per_atom_energy_mean",
        "training_module.optimizer.amsgrad", "EarlyStopping watches", "data.split_dataset: frames are drawn",
    ):  # fmt: skip
        assert expected in comments
    assert "NOT COMPLETE" not in text


def test_the_loss_is_upstreams(tmp_path, capsys):
    from nequip.data import AtomicDataDict
    from nequip.train import EnergyForceLoss

    (tmp_path / "train.yaml").write_text(converted(tmp_path, upstream("nequip"), capsys))
    weights = load_config(tmp_path / "train.yaml").loss
    rng = np.random.default_rng(0)
    atoms = torch.tensor([2, 3])
    energy, label = (torch.from_numpy(rng.normal(size=2)) for _ in range(2))
    forces, force_labels = (torch.from_numpy(rng.normal(size=(5, 3))) for _ in range(2))
    found = {
        "energy": Error.of(energy / atoms, label / atoms, torch.ones(2)),
        "force": Error.of(forces, force_labels, torch.ones(5)),
    }

    def data(energy, forces):
        return {
            AtomicDataDict.TOTAL_ENERGY_KEY: energy[:, None], AtomicDataDict.FORCE_KEY: forces,
            AtomicDataDict.NUM_NODES_KEY: atoms, AtomicDataDict.POSITIONS_KEY: forces,
            AtomicDataDict.BATCH_KEY: torch.tensor([0, 0, 1, 1, 1]),
        }  # fmt: skip

    theirs = EnergyForceLoss(coeffs={"total_energy": 1.0, "forces": 4.0})
    expected = theirs(data(energy, forces), data(label, force_labels))["weighted_sum"].item()
    assert loss(found, weights, torch.tensor([2.0, 15.0, 1.0])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("training_module.model._target_", "nequip.model.Other", "'nequip.model.Other' is not implemented"),
        ("training_module.model._target_", "nequip.model.ModelFromPackage", "starts from the weights of another model"),
        ("training_module.model.r_max", "${r_max_from_package:x}", "r_max is .*write its value"),
        ("training_module.model.type_names", ["C3", "Al"], "type_names has C3; nequip-md-train needs chemical symbols"),
        ("training_module.model.num_layers", "many", "num_layers"),
        ("training_module.loss.coeffs", "all", "is not written as nequip-train wants it"),
        ("training_module", None, "it has no section training_module"),
        ("defaults", ["base"], "put together from several files"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, capsys, path, value, expected):
    content = copy.deepcopy(upstream("nequip"))
    *parents, last = path.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    section[last] = value
    (tmp_path / "upstream.yaml").write_text(yaml.safe_dump(content))
    assert main([str(tmp_path / "upstream.yaml"), "--from-nequip"]) == 1
    error = capsys.readouterr().err
    assert re.search(expected, error) and "Traceback" not in error


def test_loggers_are_converted(tmp_path, capsys):
    content = upstream("nequip")
    content["trainer"]["logger"] = [
        {"_target_": "lightning.pytorch.loggers.wandb.WandbLogger", "project": "copper"},
        {"_target_": "lightning.pytorch.loggers.CometLogger"},
    ]
    text = converted(tmp_path, content, capsys)
    assert yaml.safe_load(text)["loggers"] == ["wandb"]
    comments = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    assert "WandbLogger's project are left out" in comments and "CometLogger has no equivalent" in comments
    content["trainer"]["logger"] = {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}
    assert yaml.safe_load(converted(tmp_path, content, capsys))["loggers"] == ["tensorboard"]


def test_a_schedule_of_loss_coefficients_is_converted(tmp_path, capsys):
    """Upstream counts epochs from 0 and divides by the sum."""
    content = upstream("nequip")
    schedule = {
        0: {"per_atom_energy_mse": 1.0, "forces_mse": 3.0},
        100: {"per_atom_energy_mse": 4.0, "forces_mse": 1.0},
    }
    callback = {"_target_": "nequip.train.callbacks.LossCoefficientScheduler", "schedule": schedule}
    content["trainer"]["callbacks"] = [callback]
    text = converted(tmp_path, content, capsys)
    loss = yaml.safe_load(text)["loss"]
    assert (loss["energy"], loss["force"]) == (0.25, 0.75)
    assert loss["schedule"] == [{"epoch": 101, "energy": 0.8, "force": 0.2, "stress": 0.0}]
    assert "LossCoefficientScheduler" not in text
    schedule[100] = {"dipole_mse": 1.0}
    text = converted(tmp_path, content, capsys)
    assert "schedule" not in yaml.safe_load(text)["loss"] and "dipole_mse is no part of the loss here" in text


def test_a_schedule_free_file_is_converted(tmp_path, capsys):
    content = upstream("nequip")
    module = content["training_module"]
    module["_target_"] = "nequip.train.ScheduleFreeLightningModule"
    del module["ema_decay"]
    module["optimizer"] = {"_target_": "schedulefree.AdamWScheduleFree", "lr": 0.01, "warmup_steps": 50}
    config = yaml.safe_load(converted(tmp_path, content, capsys))
    expected = {"kind": "schedule_free", "ema_decay": None, "learning_rate": 0.01, "warmup_steps": 50}
    assert config["optimizer"] == {**expected, "gradient_clip": 5.0} and "schedule" not in config


def test_what_is_missing_is_said(tmp_path, capsys):
    content = upstream("nequip")
    content["data"] = {"_target_": "nequip.data.datamodule.sGDML_CCSD_DataModule", "dataset": "aspirin", "seed": 1}
    content["training_module"]["lr_scheduler"] = None
    del content["training_module"]["model"]["per_type_energy_scales"]
    content["training_module"]["model"]["per_type_energy_shifts"] = {"Cu": -1.0, "Al": 2.0}
    text = converted(tmp_path, content, capsys)
    assert "# NOT COMPLETE" in text and "data.train: is required" in text and "sGDML_CCSD_DataModule" in text
    config = yaml.safe_load(text)
    assert config["schedule"] == {"kind": "constant"}
    assert config["model"]["energy_scales"] is None and config["model"]["energy_shifts"] == {"Cu": -1.0, "Al": 2.0}


def test_an_upstream_file_given_to_the_trainer_names_the_converter(tmp_path, capsys):
    path = tmp_path / "upstream.yaml"
    path.write_text(yaml.safe_dump(upstream("nequip")))
    assert main([str(path)]) == 1
    assert f"nequip-md-train --from-nequip {path}" in capsys.readouterr().err
