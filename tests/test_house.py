"""The shape of the package: files that can be read in one sitting, imports without circles, folders that import downwards."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "nequip_md": ROOT / "nequip_md",
    "nequip_md.export": ROOT / "export",
    "nequip_md.training": ROOT / "training",
}
MOST_LINES = 420

# what a package may import of this one, besides the modules that belong to no folder (errors, files ...)
MAY_IMPORT = {
    "nequip_md.ops": set(),
    "nequip_md.model": {"ops"},
    "nequip_md.graph": set(),
    "nequip_md.kernels": {"ops"},
    "nequip_md.lowering": {"kernels", "model", "ops"},
    "nequip_md.artifact": {"graph"},
    "nequip_md.checkpoint": {"model"},
    "nequip_md.calculators": {"artifact", "graph"},
    "nequip_md.lammps": set(),
}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(name: str, path: Path, everywhere: bool) -> set[str]:
    """Modules of this package that a module imports at its top, or anywhere; not for type checkers alone."""

    def statements(body):
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            yield node
            if everywhere or isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from statements(ast.iter_child_nodes(node))

    found = set()
    for node in statements(ast.parse(path.read_text()).body):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nequip_md"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {name}


def folder_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_files_are_short():
    long = {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert not long


def test_imports_have_no_circle():
    graph = {name: imported(name, path, everywhere=False) for name, path in MODULES.items()}
    assert sum(map(len, graph.values())) > 200
    # importing a module imports the packages that it lies in first, which here only name what they offer
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    direct = {name: uses - packages if name not in packages else uses for name, uses in graph.items()}
    try:
        TopologicalSorter(direct).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_folders_import_downwards(package):
    folders = {folder_of(name) for name, path in MODULES.items() if name.count(".") > 1}
    for name, path in MODULES.items():
        if folder_of(name) == package:
            used = {folder_of(module) for module in imported(name, path, everywhere=True)} & folders - {package}
            surplus = {folder.removeprefix("nequip_md.") for folder in used} - MAY_IMPORT[package]
            assert not surplus, f"{name} imports {surplus}"
