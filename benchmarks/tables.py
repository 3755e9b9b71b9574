"""Write the tables of measured numbers in README.md and docs/ from the files in benchmarks/results/.

    python benchmarks/tables.py

A page marks the place of a table by two comments, ``<!-- table: NAME (python benchmarks/tables.py) -->`` and
``<!-- end of table -->``; what is between them is replaced. Run it after a measurement has changed a result file;
``tests/test_documented_numbers.py`` compares the pages with the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/performance.md", "docs/kernels.md", "docs/scaling.md", "docs/training.md")
BLOCK = re.compile(r"(<!-- table: ([a-z_]+) \(python benchmarks/tables\.py\) -->\n)(.*?)(<!-- end of table -->)", re.S)

PUBLISHED = "LAMMPS-Kokkos on an H100"
"""Software with published figures, by the text after "published for" in the sources of ``targets.json``."""

PRESETS = ("small", "medium", "large", "S", "M", "L", "XL")
PRECISIONS = ("eager PyTorch, fp32, TF32 off", "artifact fp32", "artifact tf32", "artifact fp64")

# kernels of "medium" by the beginning of their names in the results, in the order of the page
KERNELS = {
    "hopper_energy": "`hopper_energy`",
    "hopper_hidden_backward_4": "`hopper_hidden_backward`, second MLP",
    "hopper_hidden_1": "`hopper_hidden`, second MLP",
    "contract_kernel": "`contract_kernel`",
    "hopper_hidden_backward_6": "`hopper_hidden_backward`, first MLP",
    "hopper_hidden_0": "`hopper_hidden`, first MLP",
    "hopper_contract_gradient": "`hopper_contract_gradient`",
    "spread_product_kernel": "`spread_product_kernel`",
    "dot_product_kernel": "`dot_product_kernel`",
    "moment_product_kernel": "`moment_product_kernel`",
    "mix_kernel": "`mix_kernel`",
    "hopper_contract_moment": "`hopper_contract_moment`",
    "embedding_": "embedding and its gradient",
    "hopper_channel_product": "`hopper_channel_product`",
    "": "kernels made by Inductor, and the sum of energies",
}
MLP_KERNELS = {
    "energy": "energy",
    "hidden": "hidden layers, second MLP",
    "backward": "their gradient",
    "first hidden": "hidden layers, first MLP",
    "first backward": "their gradient",
}


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def number(value: float | None) -> str:
    """Format a number with three significant digits, and all digits before the decimal point."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = next(d for d in (0, 1, 2, 3, 4) if d == 4 or abs(value) >= 10 ** (2 - d))
    return f"{value:.{decimals}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n"


def same_run() -> str:
    """Table of this package and upstream in one run on one GPU, with the same weights."""
    result = read("h200_medium_fp32.json")
    rows = []
    for atoms in sorted({row["atoms"] for row in result["rows"]}, reverse=True):
        ours, peer = (
            next(r for r in result["rows"] if r["atoms"] == atoms and r["who"].startswith(who))
            for who in ("nequip-md", "nequip-allegro")
        )
        for what, key in (("time, µs/atom", "us_per_atom_step"), ("memory, GiB", "memory_gib")):
            ratio = number(peer[key] / ours[key])
            rows.append([f"{atoms:,} atoms: {what}", number(peer[key]), number(ours[key]), f"{ratio}×"])
    gpu = result["machine"]["gpu"]
    return table(["", f"nequip-allegro 0.8.3, on one {gpu}", "nequip-md, on the same GPU in the same run", ""], rows)


def published() -> str:
    """Table of molecular dynamics beside published figures, which are for another GPU."""
    rows = []
    for row in read("targets.json"):
        if row["peer"] and PUBLISHED in row.get("peer_source", ""):
            faster = row["ours"] / row["peer"] if row["unit"] == "steps/s" else row["peer"] / row["ours"]
            rows.append(
                [
                    work(row),
                    row["unit"],
                    number(row["peer"]),
                    number(row["ours"]),
                    f"{faster:.{0 if faster > 10 else 1}f}×",
                ]
            )
    return table(["whole steps in LAMMPS, fp32", "", f"published: {PUBLISHED}", "nequip-md on an H200", ""], rows)


def work(row: dict[str, Any]) -> str:
    text = re.sub(r", fp32-accurate|, LAMMPS(, all included)?$", "", row["work"])
    return re.sub(r"^(small|medium|large)", r'"\1"', text)


def targets() -> str:
    """Table of all rows of targets.json, with a legend of the sources of published figures."""
    sources: list[str] = []
    rows = []
    for row in read("targets.json"):
        peer = number(row["peer"])
        if row["peer"]:
            source = row.get("peer_source") or "the same run: nequip-allegro 0.8.3, AOTInductor"
            if source not in sources:
                sources.append(source)
            peer += f" ({sources.index(source) + 1})"
        machine = row["machine"].split(",")[0].removeprefix("NVIDIA ")
        rows.append(
            [row["work"], row["unit"], peer, number(row["ours"]), number(row["target"]), f"{machine}, {row['date']}"]
        )
    legend = "; ".join(f"({k}) {source}" for k, source in enumerate(sources, start=1))
    return table(["work", "unit", "others", "nequip-md", "aim", "measured on"], rows) + f"Others: {legend}.\n\n"


def accuracy() -> str:
    errors = read("h200_accuracy.json") | read("h200_accuracy_nequip.json")
    rows = []
    for preset in PRESETS:
        of_preset = errors[f"{preset}, without ZBL"]
        cells = [f"{of_preset[p]['edge_gradients']:.1e}, {of_preset[p]['forces']:.1e}" for p in PRECISIONS]
        rows.append([f"NequIP {preset}" if preset.isupper() else f"Allegro {preset}", *cells])
    return table(["", "eager PyTorch, fp32 (TF32 off)", "artifact fp32", "tf32", "fp64"], rows)


def drift() -> str:
    rows = []
    for name, potential in (
        ("nve_fp32.json", "water example, 192 atoms"),
        ("nve_fp64.json", "water example, 192 atoms"),
        ("h200_nve.json", "`nve_water/water.nqmd`, MLPs of one layer, 1,536 atoms"),
        ("h200_nve_two_layers.json", "`nve_water/two_layers.nqmd`, MLPs of two layers, 1,536 atoms"),
    ):
        result = read(name)
        for run in result if isinstance(result, list) else [result]:
            precision = run["work"].rsplit(" ", 1)[1]
            length = f"{run['until_ps']:.0f} ps" + (" (ended: changed by 1 meV/atom)" if run["ended"] else "")
            rows.append(
                [
                    potential,
                    run["machine"].removeprefix("NVIDIA "),
                    precision,
                    length,
                    f"{run['drift_meV_per_atom_per_ps']:+.1e}",
                ]
            )
    return table(["potential", "machine", "precision", "length", "drift, meV/atom/ps"], rows)


def fine_tuning() -> str:
    result = read("fine_tuning.json")

    def cells(found: dict[str, Any]) -> list[str]:
        return [f"{1e3 * found['test']['force_rmse']:.0f}", f"{1e3 * found['test']['energy_rmse']:.1f}"]

    first = result["first"]
    old = f"{1e3 * first['force_rmse_of_first_data']:.0f}"
    rows = [["upstream's model as it is", "", cells(first)[0], "", old]]  # its energies have another zero
    for way, found in result["runs"].items():
        old = f"{1e3 * found['force_rmse_of_first_data']:.0f}"
        rows.append([way, f"{found['learning_rate']:g}", *cells(found), old])
    return table(["", "learning rate", "forces, meV/Å", "energies, meV/atom", "forces in acetylacetone, meV/Å"], rows)


def accuracy_speed() -> str:
    rows = []
    for row in read("accuracy_speed_cpu.json")["rows"]:
        (time,) = row["us_per_atom_step"].values()
        rows.append([row["preset"], f"{row['weights']:,}", f"{time:.0f}", f"{1e3 * row['test']['force_rmse']:.0f}"])
    return table(["preset", "weights", "µs/atom", "force RMSE, meV/Å"], rows)


def scaling() -> str:
    rows = []
    for point in read("cpu_scaling_nequip_m.json")["points"]:
        sent = [number(point[key]) if point["ranks"] > 1 else "" for key in ("exchanged_mb", "exchange_ms")]
        time, efficiency = number(point["ms_per_step"]), f"{point['efficiency']:.0%}"
        rows.append([point["scaling"], str(point["ranks"]), f"{point['atoms']:,}", time, *sent, efficiency])
    head = ["scaling", "processes", "atoms", "ms/step", "MB that each sends in a step", "ms for that", "efficiency"]
    return table(head, rows)


def kernel_times() -> str:
    columns = []
    for precision in ("fp32", "tf32"):
        for result in sorted(read(f"h200_kernel_times_{precision}.json")["results"], key=lambda r: -r["atoms"]):
            columns.append((f"{precision}, {result['atoms']:,} atoms", result))
    rows = []
    for prefix, name in KERNELS.items():
        cells, calls = [], 0
        for _, result in columns:
            kernels = [k for k in result["kernels"] if _longest_prefix(k["name"]) == prefix]
            cells.append(_milliseconds(sum(k["ms"] for k in kernels)))
            calls = sum(int(k["calls"]) for k in kernels)
        rows.append([f"{name} ({calls})", *cells])
    launches = sum(int(k["calls"]) for k in columns[0][1]["kernels"])
    rows.append([f"sum ({launches})", *(_milliseconds(result["sum_ms"]) for _, result in columns)])
    return table(["kernel (launches), ms", *(head for head, _ in columns)], rows)


def _longest_prefix(kernel: str) -> str:
    return max((prefix for prefix in KERNELS if kernel.startswith(prefix)), key=len)


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else number(value) if value >= 10 else f"{value:.2f}"


def hopper_kernels() -> str:
    result = read("h200_hopper_kernels.json")["rows"]
    rows = []
    for kernel, name in MLP_KERNELS.items():
        cells = []
        for precision in ("fp32", "tf32"):
            (row,) = (r for r in result if r["kernel"] == kernel and r["precision"] == precision)
            few = ", ".join(f"{1e3 * ms:.0f}" for ms in row["few_ms"])
            cells += [f"{row['many_ms']:.2f}", f"{row['triton_ms']:.2f}", few]
        rows.append([name, *cells])
    return table(["kernel", "fp32, ms", "Triton, ms", "few edges, µs", "tf32, ms", "Triton, ms", "few edges, µs"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "same_run": same_run,
    "published": published,
    "targets": targets,
    "accuracy": accuracy,
    "drift": drift,
    "kernel_times": kernel_times,
    "hopper_kernels": hopper_kernels,
    "fine_tuning": fine_tuning,
    "accuracy_speed": accuracy_speed,
    "scaling": scaling,
}


def with_tables(text: str) -> str:
    """A page with all of its tables replaced by new ones."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], text)


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        if (new := with_tables(text)) != text:
            path.write_text(new)
            print(f"{page}: tables written")


if __name__ == "__main__":
    main()
