"""Measured numbers in README.md and docs/ are those of the files in benchmarks/results/."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))
import tables

from nequip_md.model.config import ALLEGRO_PRESETS, preset


def read(name):
    return json.loads((RESULTS / name).read_text())


def target(start, key="ours"):
    (row,) = (row for row in read("targets.json") if row["work"].startswith(start))
    return row[key]


def note(start, position):
    """A number in the note of a row; thousands are written 98,304."""
    return float(re.findall(r"\d[\d,]*\.?\d*", target(start, "note"))[position].replace(",", ""))


def kernel_times(match, factor=1.0):
    (result,) = read("h200_kernel_times_molecule.json")["results"]
    return factor * sum(kernel["ms"] for kernel in result["kernels"] if re.match(match, kernel["name"]))


def water_training():
    """The record of training in the header of the example's checkpoint (docs/checkpoints.md)."""
    with open(ROOT / "examples" / "lammps" / "water" / "water.nqmd", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["nequip_md"])["training"]


def accuracy_ratio():
    """The largest ratio of an fp32 artifact's force error to that of plain fp32."""
    errors = read("h200_accuracy.json") | read("h200_accuracy_nequip.json")
    presets = [errors[f"{preset}, without ZBL"] for preset in tables.PRESETS]
    return max(p["artifact fp32"]["forces"] / p["eager PyTorch, fp32, TF32 off"]["forces"] for p in presets)


def malloc_peak():
    before, after = (float(line.rsplit(" ", 1)[1]) for line in (RESULTS / "malloc.txt").read_text().splitlines()[-2:])
    return after / before


def kilobytes_per_edge():
    (row,) = (
        row
        for row in read("h200_medium_fp32.json")["rows"]
        if row["atoms"] == 12288 and row["who"].startswith("nequip-md")
    )
    return 1e-3 * row["memory_gib"] * 2**30 / (row["atoms"] * row["edges_per_atom"])


def gpu_step(key, file="h200_training_step.json"):
    return 1e3 * read(file)["step_s"][key]


def atoms_per_second(file, key):
    """Thousands, at a batch of 256 frames."""
    (row,) = (row for row in read(file)["larger_batches"] if row["frames"] == 256)
    return 1e-3 * row["atoms_per_s"][key]


def nequip_step(atoms, precision, key, file="h200_nequip_m.json", who="nequip-md"):
    """A time of the graph of NequIP "M"."""
    rows = [row for row in read(file)["rows"] if row["who"].split()[0] == who]
    (row,) = (row for row in rows if (row["atoms"], row["precision"]) == (atoms, precision))
    return row[key]


NEQUIP_STEP = "h200_training_step_nequip.json"


def large_store(*keys):
    """A number of the store of a million frames."""
    value = read("large_store.json")["sets"][-1]
    for key in keys:
        value = value[key]
    return value


def bytes_per_frame():
    small, large = read("large_store.json")["sets"]
    memory = [s["epoch, by workers"]["0"]["at the end, MB"] for s in (small, large)]
    return 1e6 * (memory[1] - memory[0]) / (large["frames"] - small["frames"])


LARGEST = "medium, fp32-accurate, largest system, time"
OVERHEAD = "medium, fp32-accurate, 98,304 atoms"
CPU = "medium, fp32, 192 atoms of water, CPU"

# page, sentence with a pair of braces for each number, the numbers
FIGURES = [
    ("README.md", "In tf32 an evaluation takes {} µs/atom.", [lambda: target("medium, tf32")]),
    (
        "README.md",
        "A run of {} million atoms fits on one H200, at {} µs/atom/step.",
        [lambda: 1e-6 * target("medium, fp32-accurate, largest system of water"), lambda: note(LARGEST, 1)],
    ),
    (
        "README.md",
        "192 atoms take {} ms, and {} ms with nequip-allegro in the same run.",
        [lambda: target(CPU), lambda: target(CPU, "peer")],
    ),
    (
        "README.md",
        "drifts by {} meV/atom/ps in fp32 and {} in fp64",
        [
            lambda: read("nve_fp32.json")["drift_meV_per_atom_per_ps"],
            lambda: read("nve_fp64.json")["drift_meV_per_atom_per_ps"],
        ],
    ),
    ("README.md", "in NVE, 192 atoms for {} ps", [lambda: read("nve_fp32.json")["until_ps"]]),
    (
        "README.md",
        "trained on {} frames of DFT water) has a force RMSE of {} meV/Å and an energy RMSE of {} meV/atom",
        [
            lambda: water_training()["statistics"]["num_frames"],
            lambda: 1e3 * water_training()["metrics"]["test"]["force_rmse"],
            lambda: 1e3 * water_training()["metrics"]["test"]["energy_rmse"],
        ],
    ),
    (
        "README.md",
        "systems of up to {} million atoms on an H200",
        [lambda: 1e-6 * target("medium, fp32-accurate, largest system of water")],
    ),
    (
        "docs/performance.md",
        "The forces differ by {} relative",
        [lambda: read("h200_medium_fp32.json")["relative_force_difference"]["fp32"]],
    ),
    ("docs/performance.md", "The largest system took {} µs/atom/step", [lambda: note(LARGEST, 1)]),
    (
        "docs/performance.md",
        "is the difference of {} and {} µs/atom/step at {} atoms",
        [lambda: note(OVERHEAD, 0), lambda: note(OVERHEAD, 2), lambda: note(OVERHEAD, 3)],
    ),
    (
        "docs/performance.md",
        "the same model took {} ms on another day, and upstream's artifact {} ms in that run",
        [lambda: 1e3 * read("cpu_step.json")["ours_s"], lambda: 1e3 * read("cpu_step.json")["peer_s"]],
    ),
    ("docs/performance.md", "are at most {} times as inexact as those of PyTorch in plain fp32", [accuracy_ratio]),
    (
        "docs/kernels.md",
        "the kernels take {} µs, {} of them in the five MLP kernels",
        [lambda: kernel_times("", 1e3), lambda: kernel_times("hopper_(energy|hidden)", 1e3)],
    ),
    (
        "docs/kernels.md",
        "A tile of 64 rows takes {} µs in the energy kernel",
        [
            lambda: next(
                1e3 * row["few_ms"][0]
                for row in read("h200_hopper_kernels.json")["rows"]
                if (row["kernel"], row["precision"]) == ("energy", "fp32")
            )
        ],
    ),
    (
        "README.md",
        "takes {} ms, and {} ms with nequip-allegro, compiled",
        [lambda: gpu_step("ours, recorded"), lambda: gpu_step("upstream, cuequivariance")],
    ),
    (
        "docs/training.md",
        "takes {} ms; without recording {} ms, eager {} ms.",
        [lambda kind=kind: gpu_step(f"ours, {kind}") for kind in ("recorded", "compiled", "eager")],
    ),
    (
        "docs/training.md",
        "of cuEquivariance takes {} ms for the same weights",
        [lambda: gpu_step("upstream, cuequivariance")],
    ),
    (
        "docs/training.md",
        "takes {} ms; without recording {} ms, eager {} ms;",
        [lambda kind=kind: gpu_step(f"ours, {kind}", NEQUIP_STEP) for kind in ("recorded", "compiled", "eager")],
    ),
    (
        "docs/training.md",
        "with OpenEquivariance takes {} ms",
        [lambda: gpu_step("upstream, openequivariance", NEQUIP_STEP)],
    ),
    (
        "docs/training.md",
        "Compilation took {} and {} s",
        [
            lambda file=file: read(file)["until_first_loss_s"]["ours, compiled"]
            for file in ("h200_training_step.json", NEQUIP_STEP)
        ],
    ),
    (
        "docs/training.md",
        'processes {} thousand atoms a second (upstream {}), "M" {} (upstream {})',
        [
            lambda: atoms_per_second("h200_training_step.json", "ours, compiled"),
            lambda: atoms_per_second("h200_training_step.json", "upstream, cuequivariance"),
            lambda: atoms_per_second(NEQUIP_STEP, "ours, compiled"),
            lambda: atoms_per_second(NEQUIP_STEP, "upstream, openequivariance"),
        ],
    ),
    (
        "docs/training.md",
        "takes {} ms compiled, {} ms in eager mode, and {} s in upstream's eager mode",
        [
            lambda: 1e3 * read("training_step_cpu.json")["step_s"]["ours, compiled"],
            lambda: 1e3 * read("training_step_cpu.json")["step_s"]["ours, eager"],
            lambda: read("training_step_cpu.json")["step_s"]["upstream, eager"],
        ],
    ),
    (
        "docs/training.md",
        "The first step came after {} s",
        [lambda: read("training_step_cpu.json")["until_first_loss_s"]["ours, compiled"]],
    ),
    (
        "docs/performance.md",
        "takes {} µs/atom in fp32 and {} in tf32; with 192 atoms it takes {} and {} ms",
        [
            *(lambda p=p: nequip_step(5184, p, "us_per_atom_step") for p in ("fp32", "tf32")),
            *(lambda p=p: nequip_step(192, p, "ms_per_step") for p in ("fp32", "tf32")),
        ],
    ),
    (
        "docs/performance.md",
        "On two cores of a CPU 192 atoms take {} ms, and {} ms with upstream's artifact",
        [lambda w=w: nequip_step(192, "fp32", "ms_per_step", "cpu_nequip_m.json", w) for w in ("nequip-md", "nequip")],
    ),
    ("docs/lammps.md", 'about {} kB per edge on a GPU with the "medium" preset', [kilobytes_per_edge]),
    ("docs/data.md", "grows with the store, by {} bytes for each frame", [bytes_per_frame]),
    (
        "docs/data.md",
        "were opened in {} s, and the first batch of an epoch came after {} s",
        [lambda: large_store("open", "open, s"), lambda: large_store("epoch, by workers", "0", "first batch after, s")],
    ),
    ("docs/files_and_trust.md", "its peak can be {} times as high", [malloc_peak]),
]

# figures with a unit in pages of performance that are no result: facts of a GPU, settings, limits that were chosen
OTHERS = {
    "README.md": ["3.35 against 4.8 TB/s", "1e-10"],
    "docs/performance.md": ["6 Å", "0.5 fs", "22 and 30 ps", "about 2 %"],
}

NUMBER = r"([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)"
UNIT = r"\d ?(?:(?:µs|ms|ns|fs|ps|steps/s|GiB|GB|TB/s|meV|eV|Å|%|×|times)(?![\w])|million|e-)"


def words(text):
    return re.sub(r"\s+", " ", text)


def agree(text, value):
    """Whether a printed number is the value, rounded to the digits that are printed."""
    mantissa, _, exponent = text.replace(",", "").partition("e")
    last_digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(text.replace(",", "")) - value) <= 0.5 * last_digit * (1 + 1e-9)


def sentence_pattern(sentence):
    return NUMBER.join(re.escape(part) for part in sentence.split("{}"))


@pytest.mark.parametrize(("text", "value", "right"), [("1.05", 1.0476, True), ("1.04", 1.0476, False), ("1,040", 1040.4, True), ("9e-8", 9.4e-8, True), ("9e-8", 8.4e-8, False), ("+0.0003", 2.8e-4, True), ("-0.0005", 5.4e-4, False)])  # fmt: skip
def test_printed_digits(text, value, right):
    assert re.fullmatch(NUMBER, text) and agree(text, value) == right


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables(page):
    """If this fails after a measurement, run ``python benchmarks/tables.py``."""
    text = (ROOT / page).read_text()
    assert len(tables.BLOCK.findall(text)) == text.count("<!-- table:") == text.count("<!-- end of table -->") > 0
    assert text == tables.with_tables(text)


def test_every_table_is_somewhere():
    pages = "".join((ROOT / page).read_text() for page in tables.PAGES)
    assert {match[1] for match in tables.BLOCK.findall(pages)} == set(tables.TABLES)


def test_the_table_of_presets():
    """The sizes of Allegro's presets; NequIP's are upstream's, which other tests compare."""
    text = (ROOT / "docs" / "training.md").read_text()
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| Allegro \| (.*) \|$", text))
    for name in ALLEGRO_PRESETS:
        c = preset(name, type_names=["H"])
        widths = f"{c.num_scalar_features}, {c.num_tensor_features} | {c.allegro_mlp_depth} × {c.allegro_mlp_width}"
        assert rows.pop(name) == f"{c.l_max} | {c.num_layers} | {widths}"
    assert not rows


def test_a_changed_table_is_found():
    text = (ROOT / "README.md").read_text()
    changed = re.sub(r"(\| 12,288 atoms: time, µs/atom \| [\d.]+ \| )[\d.]+", r"\g<1>0.95", text)
    assert changed != text and changed != tables.with_tables(changed) == text


@pytest.mark.parametrize(("page", "sentence", "values"), FIGURES, ids=[f"{page}: {s[:40]}" for page, s, _ in FIGURES])
def test_figures(page, sentence, values):
    found = re.findall(sentence_pattern(sentence), words((ROOT / page).read_text()))
    assert len(found) == 1, f"{page} has this sentence {len(found)} times"
    numbers = [found[0]] if isinstance(found[0], str) else found[0]
    assert len(numbers) == len(values)
    for number, value in zip(numbers, values):
        assert agree(number, value()), f"{page} says {number}, the result is {value()}"


@pytest.mark.parametrize("page", OTHERS)
def test_no_other_figures(page):
    """A figure with a unit is in a table or a sentence that is compared with a result, or is named above."""
    text = words(re.sub(r"(?m)^    .*$|```.*?```", "", tables.BLOCK.sub("", (ROOT / page).read_text())))
    for owner, sentence, _ in FIGURES:
        if owner == page:
            text = re.sub(sentence_pattern(sentence), "", text)
    for known in OTHERS[page]:
        assert known in text, f"{known} is no longer in {page}"
        text = text.replace(known, "")
    assert not re.findall(f".{{0,40}}{UNIT}.{{0,20}}", text)


def named_in(*patterns):
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return "".join(path.read_text() for path in paths if path != Path(__file__).resolve())


def test_every_result_is_named():
    """By a page, a script or a test; those in results/notebook by the notebook."""
    text = named_in("README.md", "docs/*.md", "benchmarks/*.py", "tests/*.py", "nequip_md/**/*.py")
    notebook = named_in("benchmarks/NOTEBOOK.md")
    for path in RESULTS.rglob("*"):
        if path.is_file():
            assert path.name in (notebook if path.parent.name == "notebook" else text), f"nothing names {path.name}"


def test_every_named_result_is_there():
    text = named_in("README.md", "docs/*.md", "benchmarks/NOTEBOOK.md")
    names = set(re.findall(r"\b(?:h[12]00_\w+|nve_\w+|targets|cpu_step)\.json", text))
    assert len(names) > 10 and names <= {path.name for path in RESULTS.rglob("*.json")}


def test_ghosts_of_a_cube():
    """The table of docs/scaling.md follows from its formula and the widths of "M"."""
    from nequip_md.model.nequip_irreps import plan_layers, width

    config = preset(
        "M", type_names=["H", "O"], cutoff=6.0, avg_num_neighbors=84.0, energy_scales=1.0, energy_shifts=0.0
    )
    widths = [width(layer.inputs) for layer in plan_layers(config)[1:]]
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert widths == [480, 480, 480] and f"{2 * 4 * sum(widths):,} bytes for each ghost" in page
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| (\d+) MB \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        atoms, ghosts, ratio, megabytes = (float(cell.replace(",", "")) for cell in row)
        side = (atoms / 0.1) ** (1 / 3)
        expected = 0.1 * ((side + 12) ** 3 - side**3)
        assert ghosts == round(expected) and abs(ratio - expected / atoms) < 0.051
        assert megabytes == round(expected * 2 * 4 * sum(widths) / 1e6)
