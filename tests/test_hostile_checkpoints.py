"""Damaged and hostile checkpoints: no silent change of the model, no hang, no more memory than the file's size justifies."""

from __future__ import annotations

import json
import random
import resource
import signal
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.package import PackageExporter

import nequip_md
from nequip_md.checkpoint import save
from nequip_md.checkpoint.inert_pickle import read_pickle
from nequip_md.errors import NequIPMDError
from nequip_md.model import AllegroConfig, NequIPConfig, build_model

UPSTREAM = Path(__file__).resolve().parent / "data" / "upstream"
ALLEGRO = {"type_names": ["H", "O"], "cutoff": 3.5, "num_layers": 1, "num_scalar_features": 4, "num_tensor_features": 2}
NEQUIP = {"type_names": ["H", "O"], "cutoff": 3.5, "num_layers": 2, "num_features": 2, "radial_mlp_width": 4}
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # what torch.package says of itself
MEMORY = 2**30  # bytes beyond what the process has
SECONDS = 10


def write_native(path: Path) -> None:
    torch.manual_seed(0)
    save(path, build_model(AllegroConfig(**ALLEGRO)), training={"epochs": 3})


def write_package(path: Path, model=None, options: str = "") -> None:
    """A packaged model, as far as reading it goes: ``model`` is pickled, ``options`` is YAML of its model section."""
    wrapped = nn.Module()
    wrapped.model = model or nn.Linear(2, 2)
    with PackageExporter(str(path)) as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "eager_model.pkl", nn.ModuleDict({"sole_model": wrapped}))
        exporter.save_text(
            "model", "config.yaml", options or "training_module: {model: {_target_: nequip.model.NequIPGNNModel}}"
        )
        exporter.save_text("model", "package_metadata.txt", "versions: {nequip: 0.19.1}\n")


# One flipped bit of a file is refused, or changes nothing that is read. Before there were digests and checksums, 176 of 200
# flips of the native checkpoint, and 13 of a .ckpt, were other models.

WRITERS = {
    "native": (".nqmd", write_native),
    "lightning": (
        ".ckpt",
        lambda path: path.write_bytes(next(UPSTREAM.glob("nequip-0.16.2_*_allegro.ckpt")).read_bytes()),
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_flipped_bits(kind, tmp_path):
    suffix, write = WRITERS[kind]
    path, flipped = tmp_path / f"model{suffix}", tmp_path / f"flipped{suffix}"
    write(path)
    model, content = nequip_md.load_checkpoint(path), path.read_bytes()
    expected = model.state_dict()
    generator, refused = random.Random(17), 0
    for _ in range(200):
        bad = bytearray(content)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        flipped.write_bytes(bad)
        try:
            other = nequip_md.load_checkpoint(flipped)
        except NequIPMDError:
            refused += 1
            continue
        assert other.config == model.config
        assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())
    assert refused > 150, "most bits of a file matter"


def test_native_checkpoints_of_earlier_versions_have_no_digest(tmp_path):
    path = tmp_path / "model.nqmd"
    write_native(path)
    expected = nequip_md.load_checkpoint(path)
    header = {"format_version": 1, "nequip_md_version": "0.1.0", "config": expected.config.model_dump(mode="json")}
    save_file(expected.state_dict(), path, metadata={"nequip_md": json.dumps(header)})
    assert all(
        torch.equal(tensor, expected.state_dict()[name])
        for name, tensor in nequip_md.load_checkpoint(path).state_dict().items()
    )


# Files that ask for more than they hold: each function writes one to a path.


def native(config, **changes):
    """A small checkpoint whose header tells of another model."""
    kind = NequIPConfig if config is NEQUIP else AllegroConfig

    def write(path: Path) -> None:
        model = build_model(kind(**config))
        header = {"format_version": 1, "config": model.config.model_dump(mode="json"), "training": {}}
        for key, value in changes.items():
            (header if key in header else header["config"])[key] = value
        save_file(model.state_dict(), path, metadata={"nequip_md": json.dumps(header).replace('"HUGE"', "1e999")})

    return write


def many_modules(levels: int, copies: int) -> nn.Module:
    module = nn.Linear(1, 1)
    for _ in range(levels):
        module = nn.Sequential(*[module] * copies)
    return module


def view(*size: int) -> nn.Module:
    """One number, seen as many."""
    module = nn.Module()
    module.register_buffer("numbers", torch.ones(1).as_strided(size, [0] * len(size)))
    return module


def laughing(levels: int) -> str:
    lines = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, levels))]
    return "\n".join(
        [*lines, f"training_module: {{model: {{_target_: nequip.model.NequIPGNNModel, wings: *a{levels - 1}}}}}"]
    )


def merging(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}", *(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}" for k in range(1, levels))]
    return "\n".join([*lines, f"training_module: {{model: *a{levels - 1}}}"])


def lightning(change):
    def write(path: Path) -> None:
        content = torch.load(next(UPSTREAM.glob("nequip-0.16.2_*_allegro.ckpt")), weights_only=True)
        change(content)
        torch.save(content, path)

    return write


def shared_option(content):
    option = ["x"]
    for _ in range(30):
        option = [option, option]
    content["hyper_parameters"]["model"]["wings"] = option


def circular_option(content):
    content["hyper_parameters"]["model"]["wings"] = content["hyper_parameters"]["model"]


def repeated_shifts(content):
    key = next(key for key in content["state_dict"] if key.endswith("scale_shift.shifts"))
    content["state_dict"][key] = torch.ones(1).as_strided((2500, 10**6), (0, 0))


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/model/eager_model.pkl", bytes(10**8))


def circle(path: Path) -> None:
    for one, other in ((path, path.with_name("b.zip")), (path.with_name("b.zip"), path)):
        write_package(
            one,
            options=f"training_module: {{model: {{_target_: nequip.model.ModelFromPackage, package_path: {other}}}}}",
        )


COSTLY = {
    "layers": (native(ALLEGRO, num_layers=10**6), "num_layers: Input should be less than or equal to 50"),
    "layers of NequIP": (native(NEQUIP, num_layers=10**6), "num_layers: Input should be less than or equal to 50"),
    "depth": (native(ALLEGRO, readout_mlp_depth=10**9), "readout_mlp_depth: Input should be less than"),
    "types": (native(ALLEGRO, type_names=[str(k) for k in range(10**5)]), "type_names: List should have at most 1000"),
    "bessels": (native(NEQUIP, num_bessels=10**10), "num_bessels: Input should be less than"),
    "tensor features": (
        native(ALLEGRO, num_tensor_features=10**7),
        "a model of far more than the .* numbers that the file holds",
    ),
    "scalar features": (native(ALLEGRO, num_scalar_features=10**30), "a model of far more than the .* numbers"),
    "features of NequIP": (native(NEQUIP, num_features=10**7), "a model of far more than the .* numbers"),
    "many small layers": (
        native(NEQUIP, num_layers=50, l_max=4, readout_mlp_depth=50, radial_mlp_depth=50),
        "do not fit",
    ),
    "version": (native(ALLEGRO, format_version="HUGE"), "unreadable header .OverflowError"),
    "cutoff": (native(ALLEGRO, cutoff="HUGE"), "cutoff: Input should be a finite number"),
    "shared modules": (lambda path: write_package(path, many_modules(30, 2)), "more than 100000 modules and tensors"),
    "deep modules": (lambda path: write_package(path, many_modules(100, 1)), "nested more than 50 deep"),
    "repeated number": (lambda path: write_package(path, view(2500, 10**6)), "names tensors of 10000000.* bytes"),
    "YAML aliases": (
        lambda path: write_package(path, options=laughing(30)),
        "its options are nested .* or more than 100000 items",
    ),
    "YAML merge keys": (lambda path: write_package(path, options=merging(30)), "merge"),
    "compressed": (compressed, "would unpack to 100000000 bytes"),
    "files in a circle": (circle, "lead from file to file more than"),
    "shared options": (lightning(shared_option), "its options are nested"),
    "options in themselves": (lightning(circular_option), "its options are nested"),
    "repeated shifts": (lightning(repeated_shifts), "names tensors of 10000012008 bytes"),
}


@pytest.fixture
def little(request):
    """Little time and memory for the test."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)

    def give_up(*_):
        raise TimeoutError(f"longer than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, give_up)

    def start() -> None:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))

    yield start
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("name", COSTLY)
def test_small_files_cost_little(name, tmp_path, little):
    write, message = COSTLY[name]
    path = tmp_path / "model.zip"
    write(path)
    little()
    with pytest.raises(NequIPMDError, match=message) as caught:
        nequip_md.load_checkpoint(path)
    assert path.name in str(caught.value) or "b.zip" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_keys_are_not_hashed(little):
    """The hash of a tuple in a tuple in a tuple ..., each named twice, visits the innermost one 2^40 times."""
    content = b"\x80\x03})" + b"".join(b"q\x00h\x00\x86" for _ in range(40)) + b"Ns."
    little()
    assert read_pickle(content) == {}


def test_only_known_operations_are_followed():
    with pytest.raises(UnpicklingError, match="operation INST"):
        read_pickle(b"(ios\nsystem\n.")
