"""The commands: answers that need no torch, exit statuses, output of ``nequip-md info``."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import pytest
import torch

import nequip_md
from nequip_md.__main__ import COMMANDS, main
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
    sys.exit(main())
except SystemExit as end:
    heavy = {"torch", "numpy", "ase", "pydantic", "lightning", "rich"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else end.code)
"""


def nequip_md_command(*arguments, code: str | None = None, module="nequip_md") -> subprocess.CompletedProcess:
    start = ["-c", code] if code else ["-m", module]
    return subprocess.run([sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@dataclass(frozen=True)
class Command:
    """Test data of one command.

    Attributes:
        arguments: arguments with which it calls its library function.
        function: that function, in the module where the command finds it when it is called.
        bad_input: arguments that it refuses.
        message: the error message for these.
    """

    arguments: list[str]
    function: tuple[str, str]
    bad_input: list[str]
    message: str


CASES = {
    "data": Command(
        ["summary", "absent.extxyz"],
        ("nequip_md.training.data.samples", "labelled_frames"),
        ["split", "absent.extxyz", "-o", "parts"],
        "data file absent.extxyz does not exist",
    ),
    "train": Command(["absent.yaml"], ("nequip_md.training", "train"), ["absent.yaml"], "absent.yaml: No such file"),
    "evaluate": Command(
        ["absent.nqmd", "absent.extxyz"],
        ("nequip_md.training", "evaluate_model"),
        ["absent.nqmd", "absent.extxyz"],
        "data file absent.extxyz does not exist; check the path",
    ),
    "export": Command(
        ["absent.nqmd", "-o", "x.pt2"],
        ("nequip_md.export", "export_checkpoint"),
        ["absent.nqmd", "-o", "x.pt2"],
        "checkpoint absent.nqmd does not exist; check the path",
    ),
    "validate": Command(
        ["absent.pt2"], ("nequip_md.artifact", "load_artifact"), ["absent.pt2"], "absent.pt2: no such file"
    ),
    "lammps": Command(
        ["build"],
        ("nequip_md.lammps.cli", "build"),
        ["build", "--mpi-include", "/nowhere"],
        "there is no mpi.h in /nowhere",
    ),
    "bench": Command(
        ["small"], ("nequip_md.bench.cli", "bench"), ["huge"], "huge is neither a file nor a preset; presets are nano"
    ),
    "info": Command(
        ["absent.pt2"], ("nequip_md.info", "model_facts"), ["absent.pt2"], "absent.pt2: no such file; check the path"
    ),
}


def test_every_command_has_a_case_and_a_program():
    assert CASES.keys() == COMMANDS.keys()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    expected = {f"nequip-md-{name}": f"{module}:main" for name, (module, _) in COMMANDS.items()}
    assert scripts == {"nequip-md": "nequip_md.__main__:main", **expected}
    assert command_parser("export", "").prog == "nequip-md-export"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_version_and_wrong_options_need_no_torch(command):
    done = nequip_md_command(command, "--help", code=LIGHT)
    assert done.returncode == 0 and f"usage: nequip-md {command}" in done.stdout, done.stderr
    done = nequip_md_command(command, "--version", code=LIGHT)
    assert done.returncode == 0 and done.stdout == f"nequip-md {nequip_md.__version__}\n", done.stderr
    done = nequip_md_command(command, "--no-such-option", code=LIGHT)
    assert done.returncode == 2 and f"nequip-md {command}: error: " in done.stderr, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_program_of_its_own(command):
    """``nequip-md-NAME`` names itself, and answers bad input as ``nequip-md NAME`` does: one line, status 1."""
    module, case = COMMANDS[command][0], CASES[command]
    done = nequip_md_command(*case.bad_input, module=module)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and case.message in done.stderr and done.stderr.count("\n") == 1
    done = nequip_md_command("--no-such-option", module=module)
    assert done.returncode == 2 and f"nequip-md-{command}: error: " in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_to_the_umbrella_command(command, monkeypatch, capfd):
    """The umbrella command hands over to the program of its own, which the test above starts in a process of its own."""
    case = CASES[command]
    monkeypatch.setattr(sys, "argv", ["nequip-md", command, *case.bad_input])
    assert main() == 1
    done = capfd.readouterr()
    assert done.out == "" and done.err.startswith("error: ") and case.message in done.err
    assert done.err.count("\n") == 1


REPORT = (
    "Please report it to the developers of nequip-md with the text above, the command and the output of: nequip-md info"
)
ENDS = {
    "refused": (NequIPMDError("the input, the reason; the remedy"), 1, "error: the input, the reason; the remedy\n"),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device", "x.pt2"),
        1,
        "error: x.pt2: No space left on device\n",
    ),
    "no memory": (torch.OutOfMemoryError("CUDA out of memory."), 1, "error: out of memory; try fewer atoms or smaller"),
    "SIGTERM": (signal.SIGTERM, 143, "ended by SIGTERM\n"),
    "Ctrl-C": (signal.SIGINT, 130, "ended by Ctrl-C\n"),
    "fault": (ZeroDivisionError("a fault"), 1, "Traceback (most recent call last):\n"),
}
"""What happens while a command works: an exception or a signal; the status and how standard error begins."""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_ends(command, end, monkeypatch, capsys):
    event, status, message = ENDS[end]
    case = CASES[command]

    def work(*arguments, **options):
        if isinstance(event, Exception):
            raise event
        os.kill(os.getpid(), event)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(import_module(case.function[0]), case.function[1], work)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        assert import_module(COMMANDS[command][0]).main(case.arguments) == status
    finally:
        signal.signal(signal.SIGINT, before)
    error = capsys.readouterr().err
    assert error.startswith(message), error
    fault = end == "fault"
    assert error.count("Traceback") == error.count("ZeroDivisionError: a fault\n") == error.count(REPORT) == int(fault)
    assert fault or error.count("\n") == 1


def test_the_umbrella_command():
    done = nequip_md_command("--help", code=LIGHT)
    assert done.returncode == 0 and all(f"\n    {name} " in done.stdout for name in COMMANDS), done.stderr
    assert nequip_md_command("--version", code=LIGHT).stdout == f"nequip-md {metadata.version('nequip-md')}\n"
    for arguments in (["exprt", "--help"], []):
        done = nequip_md_command(*arguments, code=LIGHT)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("nequip-md: error: "), done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes(unbuffered):
    """A closed pipe is no error; a full disk is reported, even if the text fits into the last buffer."""
    command = [sys.executable, "-m", "nequip_md", "info"]
    options = {"stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "PYTHONUNBUFFERED": unbuffered}}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, **options)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, **options)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], **options)
    assert (done.returncode, done.stderr) == (0, "")


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
