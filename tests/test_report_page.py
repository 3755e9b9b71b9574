"""``report.html``: complete, self-contained, and never the end of a run."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from nequip_md.training.report import page
from nequip_md.training.report.history import read_history
from support.training_runs import run, write_data

EMPTY = ("meta", "img")


class Page(HTMLParser):
    """Text of each table's rows, of each ``pre`` and ``h2``, and the pictures; it refuses tags that do not match."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tables, self.blocks, self.pictures, self.attributes = [], [], {}, [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag == "img":
            self.pictures.append(dict(attributes))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag in ("pre", "h2"):
            self.blocks.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        if self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data
        elif self.open[-1] in ("pre", "h2"):
            self.blocks[self.open[-1]][-1] += data


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Folder of a run of four epochs, resumed after two, whose name needs escaping."""
    folder = write_data(tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("runs") / "a<b>&c"
    assert run(folder, output, stop={"max_epochs": 2}, report_page=False) == 0
    assert not (output / "report.html").exists() and not (output / "plots").exists()
    assert run(folder, output, "--resume", stop={"max_epochs": 4}, report_page=True) == 0
    return output


def test_the_page_holds_what_the_report_does(output):
    text = (output / "report.html").read_text()
    page, report = Page(text), json.loads((output / "report.json").read_text())
    assert "<title>Training of a&lt;b&gt;&amp;c</title>" in text
    errors, training, labels, sets, statistics, types, environment = page.tables
    shown = {(row[0], row[1]): (float(row[2]), float(row[3])) for row in errors[1:]}
    for data_set, values in report["metrics"].items():
        for name, key in (("energy per atom", "energy"), ("force component", "force"), ("stress component", "stress")):
            expected = [1e3 * values[f"{key}_{kind}"] for kind in ("mae", "rmse")]
            assert shown[data_set, name] == pytest.approx(expected, abs=1e-3)
        by_type = 1e3 * values["force_rmse_by_type"]["Ar"]
        assert shown[data_set, "force component, Ar"][1] == pytest.approx(by_type, abs=1e-3)
    assert dict(training)["epochs"] == "4" and dict(training)["epoch of the best model"] == str(report["epoch"])
    assert [row[:5] for row in labels[1:]] == [["train", "24", "24", "24", "24"], ["test", "6", "6", "6", "6"]]
    assert dict(sets[1:]) == {"train": "20", "validation": "4", "test": "6"}
    assert dict(statistics)["frames"] == "20"
    assert types[1][0] == "Ar" and float(types[1][3]) == pytest.approx(report["statistics"]["force_rms"], rel=1e-5)
    assert dict(environment)["device"].startswith("c") and "torch" in dict(environment)
    configuration, model = map(yaml.safe_load, page.blocks["pre"])
    assert configuration["stop"]["max_epochs"] == 4 and configuration["optimizer"]["betas"] == [0.9, 0.999]
    assert model == report["potential"]
    assert "Predictions of the test data" in page.blocks["h2"]


def test_the_page_needs_no_other_file_and_no_network(output):
    page = Page((output / "report.html").read_text())
    files = {path.name for path in (output / "plots").iterdir()}
    assert files == {f"{kind}_{data}.png" for kind in ("parity", "force_errors") for data in ("validation", "test")} | {
        "learning_curves.png"
    }
    contents = {base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")) for picture in page.pictures}
    assert contents == {(output / "plots" / name).read_bytes() for name in files}
    assert all(picture["alt"] for picture in page.pictures)
    links = [value for name, value in page.attributes if name in ("src", "href", "action")]
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "url(" not in (output / "report.html").read_text() and "import" not in page.blocks["h2"]


def test_the_history_goes_over_a_resume(output):
    history = read_history(output)
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert np.isfinite(history["validation/force_rmse"]).all() and (np.diff(history["seconds"]) > 0).all()


def write_table(folder, version, epochs, value):
    path = folder / "logs" / f"version_{version}"
    path.mkdir(parents=True)
    if epochs is not None:
        (path / "metrics.csv").write_text("epoch,x\n" + "".join(f"{k},{value}\n" for k in epochs))


def test_the_history_takes_the_latest_run(tmp_path):
    """Version 10 comes after 9; a start without an epoch has no table; older runs and repeated epochs are left out."""
    assert read_history(tmp_path) == {}
    write_table(tmp_path, 8, range(9), 8.0)
    write_table(tmp_path, 9, range(4), 9.0)
    write_table(tmp_path, 10, range(3, 6), 10.0)
    write_table(tmp_path, 11, None, 11.0)
    history = read_history(tmp_path)
    assert history["epoch"].tolist() == [0, 1, 2, 3, 4, 5] and history["x"].tolist() == [9, 9, 9, 10, 10, 10]


def test_a_page_that_cannot_be_drawn_costs_a_warning(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no ink")

    monkeypatch.setattr(page, "learning_curves", fail)
    output = tmp_path / "run"
    assert run(write_data(tmp_path), output, stop={"max_epochs": 1}, report_page=True) == 0
    text = capsys.readouterr().out
    assert f"warning: {output / 'report.html'} was not written (ValueError: no ink)" in text
    assert "best model: " in text and (output / "report.json").exists() and not (output / "report.html").exists()


def test_a_new_run_forgets_the_page(output, tmp_path):
    folder = write_data(tmp_path)
    assert run(folder, tmp_path / "run", stop={"max_epochs": 1}) == 0
    (tmp_path / "run" / "report.html").write_text("old")
    assert run(folder, tmp_path / "run", "--overwrite", stop={"max_epochs": 1}) == 0
    assert not (tmp_path / "run" / "report.html").exists()
