"""The engine's kernels with the 32 lanes of a GPU's warp, emulated by threads that take turns, compared with the CPU's and a plain search."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CUTOFF, SKIN, EXTENT = 3.0, 0.5, 14.0
SHORTEST = np.array([[1.0, 1.4], [1.4, 0.0]])  # squares of distances, [type][type]
UNITS = 2.0**46  # of forces in fixed point
ATOMS = 900  # so dense that most centres have more edges than half a warp has lanes


class Atoms(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("positions", "type", "centre_atom", "num_centres", "cutoff", "shortest")
    ] + [("num_types", ctypes.c_longlong)]


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """The functions of warp.cpp, compiled as for a GPU and as for a CPU."""
    folder, found = tmp_path_factory.mktemp("warp"), {}
    for way, options in (("warp", ["-DWARP"]), ("cpu", [])):
        subprocess.run(
            [
                "g++",
                "-std=c++20",
                "-O1",
                "-Wall",
                "-Wno-unknown-pragmas",
                "-shared",
                "-fPIC",
                *options,
                "-I",
                ROOT / "pair_style" / "engine" / "src",
                ROOT / "tests" / "support" / "warp.cpp",
                "-o",
                folder / f"{way}.so",
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        found[way] = ctypes.CDLL(str(folder / f"{way}.so"))
    return found


def evaluate(run, positions, types, centres, cells, num_nodes, num_edges, image_atom=None):
    count, some = len(positions), len(centres)
    arrays = {
        "positions": positions,
        "type": types,
        "centre_atom": np.array(centres, np.int32),
        "num_centres": np.array([some]),
        "cutoff": np.full((2, 2), CUTOFF),
        "shortest": SHORTEST,
    }
    atoms = Atoms(*[a.ctypes.data for a in arrays.values()], 2)
    # elements that a kernel fails to write keep these values
    result = {
        "list_offset": np.full(some + 1, -7),
        "list": np.full(count * count, -7, np.int32),
        "vectors": np.full((num_edges, 3), np.nan),
        "nodes": np.full((2, num_edges), -7),
        "neighbour_atom": np.full(num_edges, -7, np.int32),
        "row_ptr": np.full(num_nodes + 1, -7),
        "forces": np.zeros((count, 3), np.int64),
        "sums": np.full((num_nodes, 10), np.nan),
    }
    p = {name: ctypes.c_void_p(a.ctypes.data) for name, a in result.items()}
    assert run(
        ctypes.byref(atoms),
        count,
        some,
        cells,
        ctypes.c_double(EXTENT),
        ctypes.c_double(SKIN),
        p["list_offset"],
        p["list"],
        ctypes.c_longlong(num_nodes),
        ctypes.c_longlong(num_edges),
        ctypes.c_double(2 * CUTOFF),
        p["vectors"],
        p["nodes"],
        p["neighbour_atom"],
        p["row_ptr"],
        p["forces"],
        p["sums"],
        None if image_atom is None else ctypes.c_void_p(image_atom.ctypes.data),
    ), "threads wait for each other"
    return result


@pytest.mark.parametrize("cells", [0, 4])
@pytest.mark.parametrize("some", [37, 3])
def test_lanes(ways, cells, some):
    rng = np.random.default_rng(some)
    positions, types = rng.uniform(0, EXTENT, (ATOMS, 3)), rng.integers(-1, 2, ATOMS)
    centres = [int(i) for i in rng.permutation(ATOMS) if types[i] >= 0][:some]
    near = np.linalg.norm(positions[:, None] - positions[centres], axis=2)
    allowed = (types >= 0)[:, None] & (near > 0)
    edges = int((allowed & (near < CUTOFF)).sum())
    nodes, padded = some + 5, edges + 11
    warp, cpu = (evaluate(ways[way].run, positions, types, centres, cells, nodes, padded) for way in ("warp", "cpu"))
    for name, values in cpu.items():
        if name == "sums":  # of floating-point numbers, in another order
            np.testing.assert_allclose(warp[name], values, rtol=1e-13, atol=1e-13, err_msg=name)
        else:
            np.testing.assert_array_equal(warp[name], values, err_msg=name)
    assert list(np.diff(cpu["list_offset"])) == list((allowed & (near < CUTOFF + SKIN)).sum(axis=0))
    assert (
        list(np.diff(cpu["row_ptr"])[:some]) == list((allowed & (near < CUTOFF)).sum(axis=0))
        and cpu["row_ptr"][-1] == padded
    )
    forces = np.zeros((ATOMS, 3))
    for k, i in enumerate(centres):
        for j in np.flatnonzero(allowed[:, k] & (near[:, k] < CUTOFF)):
            gradient = 0.1 * (positions[j] - positions[i])
            forces[i] += gradient
            forces[j] -= gradient
    np.testing.assert_allclose(cpu["forces"] / UNITS, forces, atol=1e-12)
    assert cpu["sums"][:, 6].tolist() == [*range(some), *[0] * 5] and cpu["sums"][:, 8].sum() == edges
    close = near**2 < SHORTEST[types][:, types[centres]]
    assert close[allowed].any() and list(cpu["sums"][:some, 9]) == list((allowed & close).sum(axis=0))


@pytest.mark.parametrize("cells", [0, 4])
def test_images(ways, cells):
    """Images are displaced by lattice vectors, and results of images are added to their atoms."""
    rng = np.random.default_rng(5)
    count, lattice = 150, np.array([[7.0, 0.0, 0.0], [1.0, 7.5, 0.0], [-0.5, 0.7, 8.0]])
    given = rng.uniform(0, 1, (count, 3)) @ lattice
    shifts = [shift for shift in np.ndindex(3, 3, 3) if shift != (1, 1, 1)]
    shift = np.concatenate([np.zeros((count, 3)), *(np.tile(np.array(s) - 1, (count, 1)) for s in shifts)]).astype(
        np.int32
    )
    atom = np.tile(np.arange(count, dtype=np.int32), 27)
    positions = {way: np.full((len(atom), 3), np.nan) for way in ways}
    for way, library in ways.items():
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (given, atom, shift, lattice)]
        assert library.place(*pointers, ctypes.c_longlong(len(atom)), ctypes.c_void_p(positions[way].ctypes.data)), (
            "threads wait for each other"
        )
        np.testing.assert_allclose(positions[way], given[atom] + shift @ lattice, atol=1e-13)
    types = rng.integers(-1, 2, count)[atom]
    centres = [int(i) for i in range(count) if types[i] >= 0][:20]
    near = np.linalg.norm(positions["cpu"][:, None] - positions["cpu"][centres], axis=2)
    edges = int(((types >= 0)[:, None] & (near > 0) & (near < CUTOFF)).sum())
    # the grid begins at the origin; atoms before it are in its first cells
    warp, cpu = (
        evaluate(ways[way].run, positions["cpu"], types, centres, cells, 22, edges + 3, atom) for way in ("warp", "cpu")
    )
    for name in ("nodes", "neighbour_atom", "row_ptr", "vectors", "forces"):
        np.testing.assert_array_equal(warp[name], cpu[name], err_msg=name)
    assert (cpu["neighbour_atom"][:edges] < count).all() and (cpu["nodes"][1, :edges] < 22 + count).all()
    forces = np.zeros((count, 3))
    for k, i in enumerate(centres):
        for j in np.flatnonzero((types >= 0) & (near[:, k] > 0) & (near[:, k] < CUTOFF)):
            gradient = 0.1 * (positions["cpu"][j] - positions["cpu"][i])
            forces[i] += gradient
            forces[atom[j]] -= gradient
    np.testing.assert_allclose(cpu["forces"][:count] / UNITS, forces, atol=1e-12)
    assert not cpu["forces"][count:].any() and np.abs(forces).max() > 0.1


@pytest.mark.parametrize("width", [1, 45, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_travel(ways, dtype, width):
    """Rows that are read, written, copied to images, and added up in the order of their terms, to the last digit."""
    rng = np.random.default_rng(width)
    nodes, values, images = 60, 25, 9
    read = rng.permutation(nodes)[:values]
    read[3] = -1  # an atom outside the model
    targets = rng.permutation(np.arange(40, nodes))[:images]
    write = np.concatenate([rng.permutation(np.arange(20, 40))[: values - 5], np.arange(5), targets])
    source = rng.integers(5, 20, images)
    sums = np.array([7, 3, 30])
    terms = [[4, 9, values + 41], [values + 50], [2, 2, 24, values + 7]]
    start = np.cumsum([0, *map(len, terms)])
    term = np.concatenate(terms)
    features = rng.normal(size=(nodes, width)).astype(dtype)

    expected = features.copy()
    travelled = np.full((values, width), 0.5, dtype)
    known = read >= 0
    travelled[known] = expected[read[known]]
    travelled += 1
    expected[write[:values]] = travelled
    expected[targets] = expected[source]
    for row, of_row in zip(sums, terms):
        for k in of_row:
            expected[row] += travelled[k] if k < values else expected[k - values]

    for way, library in ways.items():
        found, buffer = features.copy(), np.full((values, width), 0.5, dtype)
        pointers = {
            name: ctypes.c_void_p(a.ctypes.data)
            for name, a in {
                "read": read,
                "write": write,
                "source": source,
                "sums": sums,
                "start": start,
                "term": term,
            }.items()
        }
        assert library.travel(
            pointers["read"],
            ctypes.c_longlong(values),
            pointers["write"],
            pointers["source"],
            ctypes.c_longlong(images),
            pointers["sums"],
            pointers["start"],
            pointers["term"],
            ctypes.c_longlong(len(sums)),
            ctypes.c_longlong(width),
            np.dtype(dtype).itemsize,
            ctypes.c_void_p(found.ctypes.data),
            ctypes.c_void_p(buffer.ctypes.data),
        ), "threads wait for each other"
        np.testing.assert_array_equal(buffer, travelled, err_msg=way)
        np.testing.assert_array_equal(found, expected, err_msg=way)
