"""Pictures of runs and errors: what is drawn is what NumPy computes, and the files are pictures."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.image import imread

import nequip_md
from nequip_md import NequIPMDError
from nequip_md.training.evaluation.predictions import Predictions
from nequip_md.training.report import plots


def predictions(frames: int = 12, atoms: int = 9, *, stress: bool = True) -> Predictions:
    """Two compositions whose energies are 100 eV apart for each atom; the last frame has no label."""
    rng = np.random.default_rng(0)
    types = np.concatenate([np.arange(atoms) % (2 + k % 2) // (1 + k % 2) for k in range(frames)])
    num_atoms = np.full(frames, atoms)
    counts = np.array([np.bincount(part, minlength=2) for part in types.reshape(frames, atoms)])
    energy = counts @ [-10.0, -700.0] + rng.normal(size=frames)
    force, tensor = rng.normal(size=(frames * atoms, 3)), rng.normal(size=(frames, 3, 3)) / 100
    labels = [energy, force, tensor if stress else np.full_like(tensor, np.nan)]
    values = [label + 0.01 * rng.normal(size=label.shape) for label in (energy, force, tensor)]
    labels = [label.copy() for label in labels]
    labels[0][-1] = labels[2][-1] = np.nan
    labels[1][-atoms:] = np.nan
    pairs = [array for pair in zip(values, labels) for array in pair]
    return Predictions(("H", "O"), num_atoms, types, *pairs)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, in place of files."""
    figures = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: figures.append(figure))
    return figures


def test_parity_shows_labels_and_predictions(drawn, tmp_path):
    found = predictions()
    plots.parity(found, tmp_path / "parity.png")
    energy, force, stress = drawn[0].axes
    known = found.energy_label[:-1]
    points = energy.lines[0].get_xydata()
    # less the fit, energies of all compositions are small and their differences are as before
    assert np.abs(points).max() < 1e3 and len(points) == len(known)
    differences = (found.energy[:-1] - known) / 9
    np.testing.assert_allclose(points[:, 1] - points[:, 0], 1e3 * differences, rtol=1e-6)
    assert f"RMSE {1e3 * np.sqrt(np.mean(differences**2)):.3g} meV/atom" in energy.get_title()
    np.testing.assert_allclose(force.lines[0].get_xdata(), found.force_label[:-9].ravel())
    np.testing.assert_allclose(stress.lines[0].get_ydata(), 1e3 * found.stress[:-1].ravel())
    assert force.get_xlabel() == "label, eV/Å" and stress.get_ylabel() == "prediction, meV/Å³"
    assert all(axis.get_xlim() == axis.get_ylim() for axis in drawn[0].axes)


def test_many_points_are_drawn_by_their_density(drawn, tmp_path):
    found = predictions(frames=200, stress=False)
    plots.parity(found, tmp_path / "parity.png")
    energy, force = drawn[0].axes[:2]
    assert len(energy.lines) == 2 and len(force.lines) == 1
    assert force.collections[0].get_array().sum() == 3 * 9 * 199


def test_force_errors_by_element_and_size(drawn, tmp_path):
    found = predictions()
    plots.force_errors(found, tmp_path / "force_errors.png")
    elements, sizes = drawn[0].axes
    error = (found.forces - found.force_label)[:-9]
    rmse = [1e3 * np.sqrt(np.mean(error[found.types[:-9] == k] ** 2)) for k in (0, 1)]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in elements.containers}
    assert heights["RMSE"] == pytest.approx(rmse)
    assert [label.get_text() for label in elements.get_xticklabels()] == ["H", "O"]
    assert "meV/Å" in elements.get_ylabel() and sizes.get_xscale() == sizes.get_yscale() == "log"


def test_learning_curves_follow_the_table(drawn, tmp_path):
    columns = {
        "epoch": np.arange(4.0),
        "train/loss": np.array([4.0, 3, 2, 1]),
        "validation/loss": np.array([5.0, 4, 3, 2]),
        "validation/force_rmse": np.array([0.4, 0.3, 0.2, 0.1]),
        "learning_rate": np.full(4, 1e-3),
    }
    plots.learning_curves(columns, tmp_path / "curves.png")
    loss, force, rate = drawn[0].axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 4], [2, 3], [3, 2], [4, 1]])
    np.testing.assert_allclose(force.lines[0].get_ydata(), [400, 300, 200, 100])
    assert force.get_ylabel() == "force RMSE, meV/Å" and rate.get_xlabel() == "epoch"


@pytest.mark.parametrize("frames", [2, 12, 300])
def test_the_files_are_pictures(frames, tmp_path):
    files = plots.draw_predictions(predictions(frames), tmp_path / "new" / "folder", "_test")
    assert [path.name for path in files] == ["parity_test.png", "force_errors_test.png"]
    for path in files:
        image = imread(path)
        assert image.shape[0] > 300 and image.shape[1] > 600 and image.std() > 0.05
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {path.name for path in files}


def test_nothing_is_drawn_without_labels(tmp_path):
    nothing = predictions(frames=1)
    assert np.isnan(nothing.energy_label).all()
    assert plots.draw_predictions(nothing, tmp_path) == []


def test_without_matplotlib(monkeypatch):
    """Plots are refused before anything is read."""
    monkeypatch.delitem(sys.modules, "nequip_md.training.report.plots")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NequIPMDError, match=r"evaluation needs the package matplotlib: pip install '.\[train\]'"):
        nequip_md.evaluate("absent.nqmd", __file__, plots="plots")
