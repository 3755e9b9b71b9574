"""Run upstream's ``nequip-train`` on tiny models, and record upstream's results for each checkpoint.

    python upstream_train.py OUTPUT_FOLDER CASE [CASE ...] [--package CASE [CASE ...]]

For each case this writes ``CASE.ckpt``, where asked also ``CASE.nequip.zip``, and ``CASE.json`` with the energies (eV)
and forces (eV/angstrom) of upstream's own evaluation of that checkpoint. The script uses the versions
of ``nequip`` and ``nequip-allegro`` Python finds, so that checkpoints of older versions are made by putting those first
on ``PYTHONPATH``. Needs neither pytest nor this package.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write

TYPE_NAMES = ["Cu", "Al"]
SEED = 7

_BESSEL = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4}
_SPLINE = {"_target_": "allegro.nn.TwoBodySplineScalarEmbed", "num_splines": 6, "spline_span": 4}
_ALLEGRO = {
    "_target_": "allegro.model.AllegroModel",
    "l_max": 1,
    "num_layers": 2,
    "num_scalar_features": 6,
    "num_tensor_features": 2,
    "allegro_mlp_hidden_layers_depth": 1,
    "allegro_mlp_hidden_layers_width": 8,
    "readout_mlp_hidden_layers_depth": 1,
    "readout_mlp_hidden_layers_width": 5,
    "radial_chemical_embed": _BESSEL,
    "scalar_embed_mlp_hidden_layers_width": 7,
}
_NEQUIP = {
    "_target_": "nequip.model.NequIPGNNModel",
    "num_layers": 2,
    "l_max": 1,
    "num_features": 4,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 6,
    "num_bessels": 4,
}
_ZBL = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": TYPE_NAMES}

# Each case: whether EMA is on, then the model section (statistics and common options are added in `config`).
CASES: dict[str, tuple[bool, dict]] = {
    "allegro": (True, _ALLEGRO),
    "allegro_plain": (
        False,
        {
            **_ALLEGRO,
            "model_dtype": "float32",
            "parity": False,
            "l_max": 2,
            "tp_path_channel_coupling": False,
            "radial_chemical_embed_dim": 4,
            "pair_potential": _ZBL,
            "readout_mlp_nonlinearity": None,
            "per_edge_type_cutoff": {"Cu": 3.5, "Al": {"Cu": 3.2}},
        },
    ),
    "allegro_spline": (
        True,
        {
            **_ALLEGRO,
            "radial_chemical_embed": _SPLINE,
            "per_type_energy_shifts_trainable": True,
            "per_type_energy_scales_trainable": True,
            "scalar_embed_mlp_hidden_layers_depth": 2,
            "scalar_embed_mlp_nonlinearity": None,
        },
    ),
    "allegro_0_4": (
        True,
        {
            "_target_": "allegro.model.AllegroModel",
            "l_max": 1,
            "num_layers": 2,
            "num_scalar_features": 6,
            "num_tensor_features": 2,
            "allegro_mlp_hidden_layers_depth": 1,
            "allegro_mlp_hidden_layers_width": 8,
            "readout_mlp_hidden_layers_depth": 1,
            "readout_mlp_hidden_layers_width": 5,
            "scalar_embed": {**_BESSEL, "two_body_embedding_dim": 4, "two_body_mlp_hidden_layers_width": 7},
        },
    ),
    "nequip": (True, _NEQUIP),
    # older versions order these irreps differently
    "nequip_order": (True, {**_NEQUIP, "num_layers": 3, "l_max": 2, "num_features": 2, "radial_mlp_width": 4}),
    "nequip_plain": (
        False,
        {
            **_NEQUIP,
            "model_dtype": "float32",
            "num_layers": 3,
            "bessel_trainable": True,
            "pair_potential": _ZBL,
            "per_type_energy_shifts_trainable": True,
        },
    ),
    "nequip_no_parity": (True, {**_NEQUIP, "num_layers": 3, "l_max": 2, "parity": False}),
    "modified": (
        True,
        {
            "_target_": "nequip.model.modify",
            "model": _NEQUIP,
            "modifiers": [{"modifier": "modify_PerTypeScaleShift", "shifts": {"Al": 0.25}}],
        },
    ),
    # these two need the files of the cases that they start from in the same folder
    "from_package": (True, {"_target_": "nequip.model.ModelFromPackage", "package_path": "allegro.nequip.zip"}),
    "from_checkpoint": (
        False,
        {
            "_target_": "nequip.model.modify",
            "modifiers": [{"modifier": "modify_PerTypeScaleShift", "shifts": {"Al": 0.25}, "shifts_trainable": True}],
            "model": {"_target_": "nequip.model.ModelFromCheckpoint", "checkpoint_path": "allegro.ckpt"},
        },
    ),
    # the one that is trained until it has learned something
    "learned": (True, {**_ALLEGRO, "num_layers": 1, "num_scalar_features": 16, "num_tensor_features": 8}),
}
OF_THIS_VERSION = [
    "allegro",
    "allegro_plain",
    "allegro_spline",
    "nequip",
    "nequip_order",
    "nequip_plain",
    "nequip_no_parity",
    "modified",
    "from_package",
    "from_checkpoint",
]
"""Cases that tests train with the installed upstream, in one process."""
PACKAGED = ["allegro", "nequip_order", "from_package"]
"""Those of them that are packaged too."""
LEARNING = {"frames": 50, "epochs": 40, "batch_size": 5, "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.02}}
"""The case "learned" is trained with these changes."""


def frames(count: int = 8) -> list[Atoms]:
    """Small periodic CuAl cells (some sheared), labelled by ASE's EMT."""
    rng = np.random.default_rng(SEED)
    out = []
    for index in range(count):
        atoms = bulk("Cu", "fcc", a=3.8, cubic=True) * (1, 1, 2)
        atoms.symbols = rng.choice(TYPE_NAMES, len(atoms))
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.03 * rng.standard_normal((3, 3))), scale_atoms=True)
        atoms.rattle(0.12, seed=index)
        atoms.calc = EMT()
        atoms.get_forces()
        out.append(atoms)
    return out


def _mapper_options() -> dict:
    """The type mapper's options; upstream renamed them."""
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper

    if "model_type_names" not in inspect.signature(ChemicalSpeciesToAtomTypeMapper).parameters:
        return {"chemical_symbols": TYPE_NAMES}
    return {"model_type_names": TYPE_NAMES, "chemical_species_to_atom_type_map": {name: name for name in TYPE_NAMES}}


def config(case: str, data: Path) -> dict:
    """The ``nequip-train`` configuration of one case: two epochs, and all frames but two to train on."""
    ema, model = CASES[case]
    few = {"frames": 8, "epochs": 2, "batch_size": 2, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.05}}
    options = LEARNING if case == "learned" else few  # SGD without momentum: no state, small files
    statistics = {
        "seed": SEED,
        "model_dtype": "float64",
        "type_names": TYPE_NAMES,
        "r_max": 4.0,
        "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
        "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
        "per_type_energy_scales": "${training_data_stats:forces_rms}",
    }
    builder = model.get("model", model)
    if "ModelFrom" not in builder["_target_"]:
        builder = {**statistics, **builder}
        model = {**model, "model": builder} if "model" in model else builder
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": options["batch_size"]}
    metrics = {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"total_energy_rmse": 1.0, "forces_rmse": 1.0}}
    return {
        "run": ["train"],
        "global_options": {},  # mandatory until 0.12, optional since
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": SEED,
            "split_dataset": {"file_path": data.name, "train": options["frames"] - 2, "val": 2},
            "transforms": [
                {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", **_mapper_options()},
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": 4.0},
            ],
            "train_dataloader": loader,
            "val_dataloader": loader,
            "stats_manager": {"_target_": "nequip.data.CommonDataStatisticsManager", "type_names": TYPE_NAMES},
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "max_epochs": options["epochs"],
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "dirpath": ".",
                    "filename": case,
                    "save_last": False,
                }
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule" if ema else "nequip.train.NequIPLightningModule",
            **({"ema_decay": 0.9} if ema else {}),
            "loss": {
                "_target_": "nequip.train.EnergyForceLoss",
                "per_atom_energy": True,
                "coeffs": {"total_energy": 1.0, "forces": 1.0},
            },
            "val_metrics": metrics,
            "train_metrics": metrics,
            "test_metrics": metrics,
            "optimizer": options["optimizer"],
            "model": model,
        },
    }


def _call(main, arguments: list[str]) -> None:
    """Run a console script of upstream's in this process (importing torch once serves every case)."""
    saved, sys.argv = sys.argv, arguments
    try:
        main()
    finally:
        sys.argv = saved


def train(case: str, folder: Path) -> Path:
    """Run ``nequip-train`` on a case; returns its checkpoint."""
    from nequip.scripts.train import main
    from omegaconf import OmegaConf

    data = folder / "frames.extxyz"
    if case == "learned":
        write(data, frames(LEARNING["frames"]))
    elif not data.exists():
        write(data, frames())
    checkpoint = folder / f"{case}.ckpt"
    checkpoint.unlink(missing_ok=True)
    OmegaConf.clear_resolver("training_data_stats")
    (folder / f"{case}.yaml").write_text(json.dumps(config(case, data)))  # JSON is YAML
    _call(
        main,
        [
            "nequip-train",
            "-cp",
            str(folder),
            "-cn",
            case,
            f"hydra.run.dir={folder / 'log'}",
            "hydra/job_logging=disabled",
            "hydra/hydra_logging=disabled",
        ],
    )
    return checkpoint


def package(checkpoint: Path) -> Path:
    """Run ``nequip-package`` on a checkpoint."""
    from nequip.scripts import _workflow_utils
    from nequip.scripts.package import main

    target = checkpoint.with_suffix(".nequip.zip")
    target.unlink(missing_ok=True)
    _call(main, ["nequip-package", "build", str(checkpoint), str(target)])
    _workflow_utils.set_workflow_state(None)
    return target


def reference(checkpoint: Path) -> dict:
    """Upstream's results for a checkpoint on the first and last frame, and on a molecule."""
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    try:
        from nequip.model.saved_models.load_utils import load_saved_model

        model = load_saved_model(str(checkpoint))
    except ImportError:
        from nequip.model import ModelFromCheckpoint

        try:
            model = ModelFromCheckpoint(str(checkpoint), compile_mode="eager")["sole_model"]
        except TypeError:
            model = ModelFromCheckpoint(str(checkpoint))["sole_model"]
    model.eval()
    mapper = ChemicalSpeciesToAtomTypeMapper(**_mapper_options())
    neighbours = NeighborListTransform(r_max=4.0)

    structures = read(checkpoint.parent / "frames.extxyz", index=":")
    chosen = [structures[0], structures[-1], Atoms("CuAlCu", [[0, 0, 0], [0.2, 2.3, 0], [1.9, 0.4, 1.1]])]
    records = []
    for atoms in chosen:
        atoms.calc = None
        batch = AtomicDataDict.batched_from_list([neighbours(mapper(from_ase(atoms)))])
        result = model(batch)
        records.append(
            {
                "symbols": atoms.get_chemical_symbols(),
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell.array.tolist(),
                "pbc": atoms.pbc.tolist(),
                "energy": result["total_energy"].item(),
                "forces": result["forces"].tolist(),
            }
        )
    packages = ("nequip", "nequip-allegro", "torch", "e3nn")
    return {"versions": {name: version(name) for name in packages}, "frames": records}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="+", choices=list(CASES))
    parser.add_argument("--package", nargs="+", choices=list(CASES), default=[], help="run nequip-package on these")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # configurations name files relative to it
    warnings.filterwarnings("ignore")
    for case in arguments.cases:
        checkpoint = train(case, folder)
        (folder / f"{case}.json").write_text(json.dumps(reference(checkpoint)))
        if case in arguments.package:
            package(checkpoint)
    shutil.rmtree(folder / "log", ignore_errors=True)


if __name__ == "__main__":
    main()
