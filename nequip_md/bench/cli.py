"""``nequip-md-bench``: time of one step of a model on this machine, by number of atoms."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from nequip_md.cli import run
from nequip_md.errors import NequIPMDError

if TYPE_CHECKING:
    from ase import Atoms

    from nequip_md.bench.measure import Row
    from nequip_md.bench.peer import PeerArtifact
    from nequip_md.export import Artifact
    from nequip_md.model import PotentialConfig

Report = Callable[[str], None]


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="nequip-md-bench", description="Time of one step of a model on this machine, by number of atoms."
    )
    add = result.add_argument
    add("model", metavar="MODEL", help="checkpoint (.nqmd, .ckpt, .nequip.zip), artifact (.pt2), or a preset with random "
        "weights: small, medium, large (Allegro), S, M, L, XL (NequIP)")
    add("--sizes", type=positive, nargs="+", default=[192, 1536, 12288], metavar="ATOMS",
        help="about so many atoms each (default: 192 1536 12288)")
    add("--structure", type=Path, metavar="FILE", help="repeat this structure, in any format of ASE's (default: liquid water)")
    add("--device", choices=("cpu", "cuda"), help="default: that of the artifact, else cuda where there is one")
    add("--precision", choices=("fp64", "fp32", "tf32"), nargs="+", help="default: that of the artifact, else fp32")
    add("--engine", choices=("graph", "lammps"), nargs="+", default=["graph"],
        help="graph: evaluation alone, neighbours found beforehand (default); lammps: molecular dynamics")
    add("--peer", action="store_true", help="time upstream's nequip-allegro beside it (engine graph, Allegro, both with "
        "weights that upstream draws)")
    add("--repeats", type=positive, default=11, help="timed evaluations, of which the median counts (default: 11)")
    add("--steps", type=positive, default=20, help="timed steps of LAMMPS (default: 20)")
    add("--ranks", type=positive, default=1, help="MPI processes of LAMMPS (default: 1)")
    add("--threads", type=positive, help="CPU threads; LAMMPS' ranks share them (default: as many as PyTorch takes)")
    add("--output", type=Path, metavar="results.json", help="write all numbers there, after every size")
    add("--plot", type=Path, metavar="plot.png", help="draw time and memory over the number of atoms")
    add("--allow-pickle", action="store_true", help="read upstream files whose format executes code stored in them")
    return result


def model_config(options: argparse.Namespace) -> PotentialConfig | None:
    """Configuration of the checkpoint or preset that was named; None for an artifact.

    Raises:
        NequIPMDError: there is no such model.
    """
    from nequip_md.checkpoint import read_info
    from nequip_md.model import PRESETS, preset

    path = Path(options.model)
    if path.is_file():
        return None if path.suffix == ".pt2" else read_info(path, allow_pickle=options.allow_pickle).config
    if options.model not in PRESETS:
        raise NequIPMDError(f"{options.model} is neither a file nor a preset; presets are {', '.join(PRESETS)}")
    # as the water in nequip_md.bench.structures has it: 85 neighbours within 6 angstrom
    return preset(options.model, type_names=["H", "O"], cutoff=6.0, avg_num_neighbors=85.0, energy_scales=1.0,
                  energy_shifts=0.0, pair_potential={"chemical_species": ["H", "O"]})


def compile_all(
    options: argparse.Namespace, config: PotentialConfig, precisions: list[str], device: str, sample: Atoms, folder: Path,
    report: Report,
) -> tuple[dict[str, Artifact], dict[str, PeerArtifact], dict[str, float]]:
    """Artifacts of the model and of its peer by precision, and the largest relative difference of their forces.

    Raises:
        NequIPMDError: an artifact cannot be made, or differs from its checkpoint or from the peer.
    """
    import torch

    from nequip_md.bench import peer
    from nequip_md.checkpoint import save
    from nequip_md.export import load_artifact
    from nequip_md.export.cli import export
    from nequip_md.export.metadata import PRECISIONS as DTYPES
    from nequip_md.model import build_model

    artifacts, peers, differences = {}, {}, {}
    for precision in precisions:
        checkpoint = Path(options.model)
        if options.peer:
            sized = config.model_copy(update={"dtype": DTYPES[precision]})
            theirs, ours = peer.build_pair(sized)
        elif not checkpoint.is_file():
            torch.manual_seed(0)
            ours = build_model(config)
        if options.peer or not checkpoint.is_file():
            checkpoint = folder / f"{precision}.nqmd"
            save(checkpoint, ours)
        report(f"compiling {precision} for {device}")
        compiled = folder / f"{precision}.pt2"
        export(checkpoint, compiled, device=device, precision=precision, allow_pickle=options.allow_pickle, report=lambda _: None)
        artifacts[precision] = load_artifact(compiled)
        if options.peer:
            theirs_precision = "fp64" if precision == "fp64" else "fp32"  # TF32 is off there, as by default
            if theirs_precision not in peers:
                report(f"compiling the peer, {theirs_precision}")
                file = folder / f"{theirs_precision}.nequip.pt2"
                peers[theirs_precision] = peer.PeerArtifact(theirs, sized, file, device, sample)
            differences[precision] = peers[theirs_precision].compare(artifacts[precision], sample)
            report(f"forces of {precision} and of the peer differ by {differences[precision]:.1e} of the largest")
    return artifacts, peers, differences


def bench(options: argparse.Namespace, report: Report = print) -> list[Row]:
    """Measure everything that the options ask for and write the files; the table is left to the caller.

    Args:
        report: called with a line of text after each step.

    Raises:
        NequIPMDError: bad input, something that is not installed, or a failure that other sizes would not escape.
    """
    import torch

    from nequip_md.bench import measure, peer
    from nequip_md.bench.lammps_run import lammps_row
    from nequip_md.bench.report import check_files, plot, write_json
    from nequip_md.bench.structures import check_types, systems
    from nequip_md.export import load_artifact

    config = model_config(options)
    artifacts = {}
    if config is None:
        artifact = load_artifact(options.model, device=options.device)
        artifacts[artifact.metadata["precision"]] = artifact
        if options.peer or set(options.precision or artifacts) != set(artifacts):
            raise NequIPMDError(f"{options.model} is compiled ({', '.join(artifacts)}): for another precision or a peer, give "
                                "its checkpoint or a preset")
    if options.peer and "graph" not in options.engine:
        raise NequIPMDError("the peer is timed with --engine graph only")
    device = artifact.device.type if artifacts else options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    type_names = config.type_names if config else artifact.type_names
    boxes = systems(options.sizes, options.structure)
    check_types(boxes[0], type_names)
    if options.peer:
        peer.check_peer(config, boxes[0])
    check_files(options.output, options.plot)
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = max(1, torch.get_num_threads() // options.ranks)

    rows: list[Row] = []
    peers, differences = {}, {}
    with tempfile.TemporaryDirectory(prefix="nequip-md-bench-") as scratch:
        folder = Path(scratch)
        if not artifacts:
            precisions = list(dict.fromkeys(options.precision or ["fp32"]))
            artifacts, peers, differences = compile_all(options, config, precisions, device, boxes[0], folder, report)
        facts = {
            "model": options.model, "weights": "drawn by upstream" if options.peer else None,
            "system": str(options.structure or "liquid water"), "machine": measure.machine(device),
            "date": date.today().isoformat(), "command": shlex.join(["nequip-md-bench", *sys.argv[1:]]),
            "repeats": options.repeats,
            "lammps": {"steps": options.steps, "ranks": options.ranks, "threads_per_rank": threads},
            "relative_force_difference": differences,
        }
        for atoms in boxes:
            new = measure.graph_rows(artifacts, peers, atoms, device, options.repeats) if "graph" in options.engine else []
            edges = new[0].edges_per_atom if new else None
            if device == "cuda":
                torch.cuda.empty_cache()  # for LAMMPS, which is another process
            for precision, artifact in artifacts.items() if "lammps" in options.engine else ():
                new.append(lammps_row(artifact.path, type_names, precision, atoms, folder, steps=options.steps,
                                      ranks=options.ranks, threads=threads))
                new[-1].edges_per_atom = edges
            for row in new:
                result = row.error or f"{row.ms_per_step:.3f} ms/step, {row.us_per_atom_step:.2f} µs/atom/step"
                report(f"{row.engine}, {row.who}, {row.precision}, {row.atoms:,} atoms: {result}")
            rows += new
            if options.output:
                write_json(options.output, rows, facts)
    if options.plot:
        plot(options.plot, rows, f"{options.model}, {facts['system']}, {facts['machine']['gpu'] or facts['machine']['cpu']}")
    return rows


def main() -> None:
    options = parser().parse_args()

    def program() -> int:
        from rich.console import Console

        from nequip_md.bench.report import results_table

        console = Console(highlight=False)
        with console.status("measuring"):
            rows = bench(options, report=lambda line: console.print(line, soft_wrap=True, markup=False))
        table = results_table(rows, f"{options.model}, {options.structure or 'liquid water'}")
        Console(width=max(100, console.width)).print(table)  # a narrower one would cut numbers
        return int(all(row.error for row in rows))

    run(program)


if __name__ == "__main__":
    main()
