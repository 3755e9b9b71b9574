"""The documentation builds as a site without a warning, names what is public, and loads nothing from the network."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "checkpoint": "nequip_md/checkpoint",
    "model": "nequip_md/model",
    "graph": "nequip_md/graph",
    "export": "export",
    "artifact": "nequip_md/artifact",
    "calculators": "nequip_md/calculators",
}
ENGINES = ("lammps", "ase", "engine")
SECTIONS = ["What it does", "Install", "Smallest example", "Options", "Results and units", "Errors", "Limits"]


def build(root, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", root / "mkdocs.yml", "-d", site]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), page
    assert not list(site.rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_on_the_page(site, package):
    folder = ROOT / PACKAGES[package]
    module = ast.parse((folder / "__init__.py").read_text())
    names = next(
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    page = (site / "api" / f"{package}.html").read_text()
    # a function with the name of its own module cannot be told from it without an import
    missing = [n for n in names if f'id="nequip_md.{package}.{n}"' not in page and not (folder / f"{n}.py").is_file()]
    assert names and not missing


def test_roles_of_docstrings_are_links(site):
    """Docstrings name each other as Sphinx does, :mod:`nequip_md.export`."""
    for page in (site / "api").glob("*.html"):
        assert not re.search(r":(?:class|func|mod|meth|attr):", page.read_text()), page.name
    assert '<a href="export.html"><code>nequip_md.export</code>' in (site / "api" / "index.html").read_text()


def test_nothing_comes_from_the_network(site):
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text()):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{page.name}: {tag}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_faults_end_the_build(tmp_path):
    for name in ("mkdocs.yml", "pyproject.toml", "nequip_md", "export", "training", "pair_style", "cmake"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in (ROOT / "docs").rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    with (tmp_path / "docs" / "faq.md").open("a") as file:
        file.write("\n[a](absent.md) [b](ase.md#absent) [c](/absolute.md) ![d](images/absent.png)\n")
    (tmp_path / "docs" / "forgotten.md").write_text("# Not in the navigation\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    for fault in ("absent.md", "#absent", "/absolute.md", "images/absent.png", "forgotten.md"):
        assert fault in done.stderr, fault


@pytest.mark.parametrize("engine", ENGINES)
def test_pages_of_engines_have_the_same_form(engine):
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / f"{engine}.md").read_text(), flags=re.S)
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    assert headings[:5] == SECTIONS[:5] and headings[-2:] == SECTIONS[-2:]


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTEBOOK.md"]
    + sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/**/*.md")),
)
def test_links_of_other_pages(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("https://", "#")):
            assert ((ROOT / page).parent / link.partition("#")[0]).exists(), link
