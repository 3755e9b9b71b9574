"""Check whether two versions of this package compile the same code, by hashes of all inputs of compilers in an export. Needs no GPU.

    python benchmarks/machine_code.py record before.json --models small medium --texts before
    python benchmarks/machine_code.py record after.json --models small medium --texts after
    python benchmarks/machine_code.py compare before.json after.json

For a GPU (``triton``, ``hopper``): the traced graph, the constants folded into it, the PTX of each Triton kernel that it launches, and the
source of the CUDA C++ kernels. For a CPU: the C++ that Inductor writes. Run both versions with the same PyTorch and Triton. ``--texts``
keeps the hashed texts except PTX, so that they can be compared with diff.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import sys
import warnings
import zipfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

MODELS = ("small", "medium", "large", "S", "M", "L", "XL")
BACKENDS = ("cpu", "triton", "hopper")
PRECISIONS = ("fp64", "fp32", "tf32")


def digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def plain_ptx(ptx: str) -> str:
    """PTX without comments, source lines, debug sections and labels for these, which depend on file names and line numbers."""
    code = re.split(r"\.section\s+\.debug", ptx)[0]
    code = re.sub(r"(?m)^\s*\.(loc|file)\b.*$", "", code)
    code = re.sub(r"(?m)^\s*\$L__(tmp|func)\w*:.*$", "", code)
    lines = (line.split("//")[0].rstrip() for line in code.splitlines())
    return "\n".join(line for line in lines if line.strip())


def gpu_code(name: str, precision: str, backend_name: str, with_ptx: bool) -> tuple[dict, dict[str, str]]:
    """Hashes of an export for a GPU, and the texts of its graph and its CUDA C++."""
    import torch
    from triton_launches import compile_launch, cuda_graph

    from nequip_md.kernels.hopper.backend import HopperBackend
    from nequip_md.kernels.triton.backend import TritonBackend

    backend = (HopperBackend if backend_name == "hopper" else TritonBackend)(precision)
    program, launches = cuda_graph(name, precision, backend)
    numbers = [t for t in (*program.state_dict.values(), *program.constants.values()) if torch.is_tensor(t)]
    constants = sorted(digest(t.detach().contiguous().numpy().tobytes()) for t in numbers)
    instances = getattr(backend, "instances", None)
    texts = {
        "graph.py": program.graph_module.code,
        "kernels.cu": instances.source() if instances and instances.numbers else "",
    }
    kernels = defaultdict(list)
    for launch in launches if with_ptx else ():
        kernels[launch["kernel"]].append(digest(plain_ptx(compile_launch(launch).asm["ptx"])))
    return {
        **{file: digest(text) for file, text in texts.items()},
        "constants": digest(json.dumps(constants)),
        "launches": len(launches),
        "ptx": {kernel: sorted(digests) for kernel, digests in kernels.items()},
    }, texts


def cpu_code(name: str, precision: str) -> tuple[dict, dict[str, str]]:
    """Hashes of the C++ that Inductor writes for an export for a CPU, and its texts."""
    import torch._inductor.config
    from triton_launches import preset_model

    from nequip_md.export.metadata import model_metadata
    from nequip_md.export.package import compile_model

    model = preset_model(name, precision)
    metadata = model_metadata(model.config, precision=precision, device="cpu")
    with torch._inductor.config.patch({"aot_inductor.package_cpp_only": True}):
        content, _ = compile_model(model, metadata, "cpu")
    texts = {}
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        for entry in sorted(archive.namelist()):
            if entry.endswith((".cpp", ".h")):
                # Inductor makes names and folders of hashes that include this package's version
                text = re.sub(r"/tmp/[^\s\"]*", "FOLDER", archive.read(entry).decode())
                text = re.sub(r"\bc[a-z0-9]{50,52}\b", "NAME", text)
                file = re.sub(r"\bc[a-z0-9]{40,}", "NAME", os.path.basename(entry))
                texts[file] = texts.get(file, "") + text
    return {file: digest(text) for file, text in texts.items()}, texts


def record_one(job: tuple) -> tuple[str, dict]:
    """Record the code of one export, in a process of its own, as Triton and Inductor keep state of earlier exports."""
    name, precision, backend, with_ptx, folder = job
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if backend == "cpu":
        result, texts = cpu_code(name, precision)
    else:
        result, texts = gpu_code(name, precision, backend, with_ptx)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (folder / f"{name}_{precision}_{backend}_{file}").write_text(text)
    return f"{name} {precision} {backend}", result


def record(options: argparse.Namespace) -> None:
    if os.environ.get("TRITON_INTERPRET"):
        sys.exit("error: TRITON_INTERPRET is set, so Triton would compile nothing; unset it")
    jobs = [
        (name, precision, backend, options.ptx, options.texts)
        for name in options.models
        for precision in options.precisions
        for backend in options.backends
        # CPUs have no TF32, the Hopper kernels no float64
        if (backend, precision) not in (("cpu", "tf32"), ("hopper", "fp64"))
    ]
    results = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as workers:
        for key, result in workers.map(record_one, jobs):
            results[key] = result
            print(key, flush=True)
            options.file.write_text(json.dumps(results, indent=1) + "\n")


def compare(options: argparse.Namespace) -> None:
    before, after = (json.loads(file.read_text()) for file in (options.before, options.after))
    differ = False
    for key in {**before, **after}:
        first, second = before.get(key), after.get(key)
        if first is None or second is None:
            print(f"{key}: only in {options.after if first is None else options.before}")
        else:
            parts = [part for part in {**first, **second} if first.get(part) != second.get(part)]
            print(f"{key}: {'differs in ' + ', '.join(parts) if parts else 'equal'}")
        differ |= first != second
    sys.exit(int(differ))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="write the hashes of this version")
    recording.add_argument("file", type=Path, metavar="OUT.json")
    recording.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="PRESET")
    recording.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    recording.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    recording.add_argument("--no-ptx", dest="ptx", action="store_false", help="list the launches, but compile none")
    recording.add_argument("--texts", type=Path, metavar="FOLDER", help="keep what is hashed in this folder")
    recording.add_argument("--jobs", type=int, default=1, help="exports at the same time")
    recording.set_defaults(run=record)
    comparing = commands.add_parser("compare", help="exit with 1 where two files of hashes differ")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.set_defaults(run=compare)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
