"""Time of one force evaluation on the CPU: this package's artifact beside upstream's own AOTInductor artifact.

    python benchmarks/cpu_step.py --preset medium --repeats 11 --output benchmarks/results/cpu_step.json

Both artifacts are compiled here, from the same weights, and take turns on the same structure (water, 192 atoms by
default) with neighbour lists made beforehand: graph evaluation only. Their energies and forces are compared first. Needs
nequip-md[test].
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.structures import water_box
from support.upstream_nequip import build_upstream, upstream_state

from nequip_md.checkpoint.upstream_allegro import state_from_upstream
from nequip_md.export import load_artifact, model_metadata, write_artifact
from nequip_md.graph import build_graph, forces_from_gradient
from nequip_md.model import build_model, preset


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def upstream_artifact(model, atoms, config, path):
    """Compile as ``nequip-compile --mode aotinductor --target ase`` does; returns (callable, inputs)."""
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.scripts._compile_utils import ASE_TARGET, single_frame_data_settings
    from nequip.utils.aot import aot_export_model

    names = config.type_names
    data = from_ase(atoms)
    data = ChemicalSpeciesToAtomTypeMapper(model_type_names=names, chemical_species_to_atom_type_map={n: n for n in names})(data)
    data = NeighborListTransform(r_max=config.cutoff, type_names=names)(data)
    data = single_frame_data_settings(AtomicDataDict.batched_from_list([data]))
    dims = {"graph": torch.export.Dim.STATIC, "node": torch.export.Dim("num_nodes", min=2), "edge": torch.export.Dim("num_edges", min=2)}
    aot_export_model(model, "cpu", ASE_TARGET["input"], ASE_TARGET["output"], data, dims, str(path))
    inputs = [data[key] for key in ASE_TARGET["input"]]
    run = torch._inductor.aoti_load_package(str(path))
    outputs = ASE_TARGET["output"]
    return lambda: dict(zip(outputs, run(*inputs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="medium", choices=("small", "medium", "large"))
    parser.add_argument("--molecules", type=int, default=4, help="n: n^3 water molecules (default 4: 192 atoms)")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    atoms = water_box(arguments.molecules)
    config = preset(arguments.preset, type_names=["H", "O"], avg_num_neighbors=90.0, pair_potential={"chemical_species": ["H", "O"]},
                    energy_scales=1.0, energy_shifts=0.0)
    upstream = build_upstream(config)
    model = build_model(config)
    model.load_state_dict(state_from_upstream(config, upstream_state(upstream)))

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        ours_path = Path(folder) / "ours.pt2"
        write_artifact(model.eval(), ours_path, model_metadata(config, precision="fp32", device="cpu"))
        ours_compile = time.perf_counter() - start
        start = time.perf_counter()
        peer = upstream_artifact(upstream, atoms, config, Path(folder) / "peer.nequip.pt2")
        peer_compile = time.perf_counter() - start

        artifact = load_artifact(ours_path)
        graph = build_graph(atoms, config.type_names, config.cutoff)
        energy, gradient = artifact(graph)
        reference = peer()
        forces = forces_from_gradient(graph, gradient)
        difference = (forces - reference["forces"]).abs().max() / reference["forces"].abs().max()
        if difference > 1e-3:
            raise SystemExit(f"the two artifacts differ: forces by {difference:.1e} of the largest")

        times = {"ours": [], "peer": []}
        for _ in range(arguments.repeats):
            for name, call in (("ours", lambda: artifact(graph)), ("peer", peer)):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    ours, theirs = statistics.median(times["ours"]), statistics.median(times["peer"])
    result = {
        "work": f"Allegro {arguments.preset}, fp32, {len(atoms)} atoms of water, {graph.num_edges / len(atoms):.0f} edges/atom, "
                f"{arguments.threads} threads, graph evaluation",
        "ours_s": ours, "peer_s": theirs, "ratio": theirs / ours, "ours_compile_s": ours_compile, "peer_compile_s": peer_compile,
        "force_difference": float(difference), "repeats": arguments.repeats, "peer": "nequip-allegro 0.8.3, AOTInductor",
        "machine": f"{cpu_name()}, PyTorch {torch.__version__.split('+')[0]}", "date": date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }
    print(f"{result['work']}\n  ours {ours * 1e3:8.1f} ms   upstream {theirs * 1e3:8.1f} ms   ratio {theirs / ours:.1f}"
          f"\n  compile: ours {ours_compile:.0f} s, upstream {peer_compile:.0f} s; largest force difference {difference:.1e}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
