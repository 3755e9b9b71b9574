"""The names that ``import nequip_md`` offers: what they cost, what editors see of them, and the examples on the pages."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

import nequip_md
from nequip_md.graph import Structure, build_graph
from nequip_md.model import energy_and_gradient
from support.training_runs import crystals, write_config, write_data

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

HEAVY = ["torch", "numpy", "ase", "scipy", "e3nn", "pydantic", "yaml", "rich", "lightning", "triton"]
COMPILER = ["torch._inductor", "torch._dynamo", "triton"]
"""What compiles models: loading an artifact needs none of it, and Inductor would read a folder that others can write to."""
NOT_IMPORTED = {
    "NequIPMDError": HEAVY,
    "ExtrapolationWarning": HEAVY,
    "train": HEAVY,
    "evaluate": HEAVY,
    "export_checkpoint": HEAVY,
    "load_artifact": [*COMPILER, "e3nn", "rich", "lightning", "nequip_md.training", "nequip_md.export.package"],
    "validate_artifact": [*COMPILER, "e3nn", "rich", "lightning", "nequip_md.training", "nequip_md.export.package"],
    "NequIPMDCalculator": [*COMPILER, "e3nn", "rich", "lightning", "nequip_md.training", "nequip_md.export.package"],
    "load_checkpoint": ["rich", "lightning", "nequip_md.training", "nequip_md.export"],
}
"""Modules that are absent after a name was taken from the package."""

PROBE = """
import json, sys
import nequip_md
listed = dir(nequip_md)
light = sorted(sys.modules)
value = getattr(nequip_md, sys.argv[1])
print(json.dumps({"listed": listed, "light": light, "after": sorted(sys.modules), "name": repr(value)}))
"""


@pytest.mark.parametrize("name", sorted({*nequip_md.__all__} - {"__version__"}))
def test_what_a_name_imports(name):
    done = subprocess.run([sys.executable, "-c", PROBE, name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not set(HEAVY) & set(found["light"]), "importing the package or listing its names is not free"
    assert set(nequip_md.__all__) <= set(found["listed"])
    unwanted = [m for m in found["after"] for prefix in NOT_IMPORTED[name] if m == prefix or m.startswith(prefix + ".")]
    assert unwanted == []


def test_unknown_names_are_attribute_errors():
    assert not hasattr(nequip_md, "load")
    with pytest.raises(ImportError, match="cannot import name 'load_model' from 'nequip_md'"):
        exec("from nequip_md import load_model")


PACKAGES = ["calculators", "checkpoint", "export", "graph", "info", "lammps", "model", "ops", "training"]


@pytest.mark.parametrize("package", ["nequip_md", "nequip_md.export", "nequip_md.info"])
def test_type_checkers_see_what_python_gives(package):
    """The imports for type checkers, which Python never runs, are of the same objects."""
    module = import_module(package)
    (block,) = [
        node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    seen = {}
    for statement in block.body:
        for alias in statement.names:
            seen[alias.asname or alias.name] = getattr(import_module(statement.module), alias.name)
    assert seen.keys() <= set(module.__all__) and len(seen) > 1
    assert {name: getattr(module, name) for name in seen} == seen
    eager = {name for name in module.__all__ if name not in seen}
    assert eager == ({"__version__", "NequIPMDError", "ExtrapolationWarning"} if package == "nequip_md" else set())


def public_functions():
    for package in ("nequip_md", *(f"nequip_md.{name}" for name in PACKAGES)):
        module = import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{package}.{name}", value
            elif inspect.isclass(value):
                for method, function in vars(value).items():
                    if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
                        yield f"{package}.{name}.{method}", function


def test_public_functions_are_annotated():
    """``py.typed`` promises it."""
    lacking, count = [], 0
    for name, function in public_functions():
        count += 1
        signature = inspect.signature(function)
        lacking += [
            f"{name}: {parameter.name}"
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
        ]
        if signature.return_annotation is signature.empty and not name.endswith(".__init__"):
            lacking.append(f"{name}: its result")
    assert lacking == [] and count > 50


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_on_the_pages_exist(page):
    """Whatever an example imports from this package can be imported, and what it takes from a module is there."""
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("nequip_md"):
                module = import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], node.module
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("nequip_md"):
                        import_module(alias.name)
    for dotted in re.findall(r"(?<![\w/.])nequip_md(?:\.\w+)+", page.read_text()):
        value, *rest = dotted.split(".")
        value = import_module(value)
        for name in rest:
            value = getattr(value, name, None) or import_module(f"{value.__name__}.{name}")


def test_examples_run(tmp_path, monkeypatch, capsys):
    """The page on Python, block by block, then README's: on a small crystal, trained, exported and checked for real."""
    write_data(tmp_path)
    write_config(tmp_path, tmp_path / "train", stop={"max_epochs": 2})
    (frame,) = crystals(1, 3)
    ase.io.write(tmp_path / "structure.xyz", frame)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for page in (ROOT / "docs" / "python.md", ROOT / "README.md"):
        blocks = python_blocks(page)
        assert blocks
        for block in blocks:
            exec(compile(block, page.name, "exec"), names)

    for name in nequip_md.__all__:
        assert name.startswith("__") or f"nequip_md.{name}" in (ROOT / "docs" / "python.md").read_text(), name
    result = names["result"]
    assert (result.folder, result.best) == (Path("run"), Path("run/best.nqmd"))
    assert result.metrics == json.loads(Path("run/report.json").read_text())["metrics"]
    assert result.metrics.keys() == {"validation", "test"} and result.metrics["validation"]["force_rmse"] > 0
    assert len(names["checks"]) > 10 and all(check.passed for check in names["checks"])
    assert "absent.pt2: no such file" in capsys.readouterr().out
    # the same numbers by the three ways: calculator, artifact on a graph, eager model
    atoms, model = names["atoms"], names["model"]
    energy, gradient = energy_and_gradient(model, *build_graph(Structure.from_ase(atoms, ["Ar"]), 1.8).tensors)
    scale = float(gradient.abs().max())
    assert scale > 1e-2
    torch.testing.assert_close(names["energies"], energy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(names["gradient"], gradient, rtol=0, atol=1e-4 * scale)
    assert atoms.get_potential_energy() == pytest.approx(float(energy.sum()), rel=1e-5)
    np.testing.assert_allclose(atoms.get_forces(), names["forces"], atol=1e-12)


def test_training_from_a_dictionary(tmp_path, monkeypatch):
    """The same run as from the file; a key that is wrong is named."""
    import yaml

    write_data(tmp_path)
    path = write_config(tmp_path, tmp_path / "train", stop={"max_epochs": 1})
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(path.read_text())
    one, other = nequip_md.train(content, output="one"), nequip_md.train(path, output="other")
    assert one.metrics == other.metrics and one.best.is_file()
    with pytest.raises(nequip_md.NequIPMDError, match="other holds a run already; give --resume"):
        nequip_md.train(content, output="other")
    with pytest.raises(nequip_md.NequIPMDError, match=r"configuration is not valid\n  data.trains: no such key"):
        nequip_md.train({**content, "data": {**content["data"], "trains": "x"}})
    with pytest.raises(nequip_md.NequIPMDError, match="resume and overwrite exclude each other"):
        nequip_md.train(content, resume=True, overwrite=True)


def test_training_without_its_packages(tmp_path, monkeypatch):
    path = write_config(write_data(tmp_path), tmp_path / "train")
    for module in [name for name in sys.modules if name.startswith("nequip_md.training.") and "config" not in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lightning", None)
    for function in (nequip_md.train, nequip_md.training.check):
        with pytest.raises(
            nequip_md.NequIPMDError, match=r"training needs the package lightning: pip install '.\[train\]'"
        ):
            function(path)
