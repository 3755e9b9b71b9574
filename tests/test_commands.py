"""The commands as they are typed: what answers without torch, what ``nequip-md info`` says."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import nequip_md
from nequip_md.__main__ import COMMANDS
from nequip_md.checkpoint import checkpoint_sha256, read_info
from nequip_md.cli import command_parser
from nequip_md.errors import NequIPMDError
from nequip_md.info.cli import lines
from nequip_md.info.installation import installation_facts
from nequip_md.info.model_file import model_facts

ROOT = Path(__file__).resolve().parents[1]
UPSTREAM = sorted((ROOT / "tests" / "data" / "upstream").glob("*.ckpt"))

LIGHT = """
import sys
from nequip_md.__main__ import main
sys.argv = ["nequip-md", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    heavy = {"torch", "numpy", "ase", "pydantic", "lightning", "rich"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else end.code)
"""


def nequip_md_command(*arguments, code: str | None = None) -> subprocess.CompletedProcess:
    start = ["-c", code] if code else ["-m", "nequip_md"]
    return subprocess.run([sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_version_and_wrong_options_need_no_torch(command):
    done = nequip_md_command(command, "--help", code=LIGHT)
    assert done.returncode == 0 and f"usage: nequip-md {command}" in done.stdout, done.stderr
    done = nequip_md_command(command, "--version", code=LIGHT)
    assert done.returncode == 0 and done.stdout == f"nequip-md {nequip_md.__version__}\n", done.stderr
    done = nequip_md_command(command, "--no-such-option", code=LIGHT)
    assert done.returncode == 2 and f"nequip-md {command}: error: " in done.stderr, done.stderr


def test_the_umbrella_command():
    done = nequip_md_command("--help", code=LIGHT)
    assert done.returncode == 0 and all(f"\n    {name} " in done.stdout for name in COMMANDS), done.stderr
    assert nequip_md_command("--version", code=LIGHT).stdout == f"nequip-md {metadata.version('nequip-md')}\n"
    done = nequip_md_command("exprt", "--help", code=LIGHT)
    assert done.returncode == 2 and "invalid choice: 'exprt'" in done.stderr
    done = nequip_md_command("export", ROOT / "README.md", "-o", "x.pt2")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_old_names_stay():
    assert command_parser("export", "").prog == "nequip-md-export"
    scripts = {e.name for e in metadata.distribution("nequip-md").entry_points if e.group == "console_scripts"}
    assert scripts == {"nequip-md"} | {f"nequip-md-{name}" for name in COMMANDS if name != "info"}


@pytest.mark.parametrize("path", UPSTREAM, ids=lambda path: path.stem)
def test_info_of_upstream_checkpoints(path):
    """The facts have as many parameters as upstream's own run averaged, and the errors that it kept."""
    state = torch.load(path, weights_only=True)["state_dict"]
    facts = model_facts(path)
    assert facts["parameters"] == sum(v.numel() for k, v in state.items() if k.startswith("ema.ema_weight_"))
    assert facts["type_names"] == ["Cu", "Al"] and facts["dtype"] == "float64"
    assert facts["kind"] == "a checkpoint of upstream's nequip-train"
    assert facts["written_by"] in path.stem.replace("-", " ").replace("_", ", ")
    expected = {k: float(v) for k, v in state["val_metrics.0._extra_state"]["metrics_values_epoch"].items()}
    assert expected and facts["training"]["metrics"] == expected


def test_info_of_an_artifact_and_its_checkpoint(small_models):
    checkpoint, artifact = small_models("allegro_fp32")
    facts, compiled = model_facts(checkpoint), model_facts(artifact)
    same = ("model", "parameters", "type_names", "cutoff", "pair_cutoffs", "hyperparameters", "checkpoint_sha256")
    assert {key: facts[key] for key in same} == {key: compiled[key] for key in same}
    assert facts["pair_cutoffs"] == {"H": {"H": 3.2, "O": 4.0}, "O": {"H": 4.0, "O": 4.0}} and facts["cutoff"] == 4.0
    assert facts["parameters"] == sum(p.numel() for p in nequip_md.load_checkpoint(checkpoint).parameters()) > 1000
    assert facts["checkpoint_sha256"] == checkpoint_sha256(checkpoint)
    assert facts["hyperparameters"]["num_tensor_features"] == 8
    assert compiled["precision"] == "fp32" and compiled["device"] == "cpu"
    assert compiled["torch_version"] == torch.__version__.split("+")[0] and "compute_capability" not in compiled
    done = nequip_md_command("info", artifact)
    assert done.returncode == 0 and "\npair_cutoffs\n  H  H 3.2, O 4\n  O  H 4, O 4\n" in done.stdout, done.stderr


def test_info_is_json_with_all_digits():
    path = ROOT / "examples" / "lammps" / "water" / "water.nqmd"
    done = nequip_md_command("info", "--json", path)
    facts = json.loads(done.stdout)
    recorded = read_info(path).training
    assert all(facts["training"][key] == recorded[key] for key in ("metrics", "statistics"))
    assert facts["parameters"] == 27200 and "pair_cutoffs" not in facts  # README's number
    text = "\n".join(lines(facts))
    assert "test        energy_mae 0.000364955, energy_rmse 0.000450187" in text


def test_info_refuses_what_holds_no_model(tmp_path):
    for path, words in (
        (tmp_path / "absent.pt2", "no such file"),
        (tmp_path, "is a directory"),
        (ROOT / "examples/lammps/water/train.yaml", "is a training file of nequip-md"),
        (ROOT / "README.md", "is a file of unknown kind"),
    ):
        with pytest.raises(NequIPMDError, match=words):
            model_facts(path)


def test_info_of_the_installation(monkeypatch, tmp_path):
    facts = installation_facts()
    assert facts["nequip-md"].startswith(nequip_md.__version__) and facts["torch"] == metadata.version("torch")
    assert facts["lammps"] == metadata.version("lammps")
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in facts["gpus"][0]
    else:
        assert facts["gpus"].startswith("none: ")
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    facts = installation_facts()
    assert facts["compiler"].startswith(f"none: {tmp_path}/no-compiler was not found")
    assert facts["plugin"].startswith("not built, "), "another compiler is another build"
    assert json.loads(json.dumps(facts)) == facts
