"""Data files to data files: conversion to extended XYZ, and splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.extxyz import write_xyz

from nequip_md.atomic import replacing
from nequip_md.errors import NequIPMDError
from nequip_md.training.data import readers
from nequip_md.training.data.label_counts import LabelCounter, LabelCounts
from nequip_md.training.data.labels import FrameLabels, Labels, Names, is_isolated_atom, with_labels
from nequip_md.training.data.samples import Refusal, labelled_frames, naming

PARTS = ("train", "validation", "test")

Frames = Iterable[tuple[str, Atoms, FrameLabels]]


def write_extxyz(
    output: str | os.PathLike,
    files: Sequence[str],
    labels: Labels,
    *,
    refuse: Refusal | None = None,
    progress: Callable[[Frames], Frames] = lambda frames: frames,
    weight: float | None = None,
    without: Sequence[str] = (),
) -> list[LabelCounts]:
    """Write the frames of some files to one file in extended XYZ, with ASE's names and units.

    Args, Returns, Raises: as :func:`~nequip_md.training.data.store_writer.write_store`, and

    Args:
        weight: multiplies the weights of the frames, which are written as ``config_weight``; None leaves them as they are.
        without: labels that are left out, of ``energy``, ``forces`` and ``stress``; not those of isolated atoms.
    """
    counters = [LabelCounter("train", path, labels) for path in files]

    def frames() -> Iterator[tuple[str, Atoms, FrameLabels]]:
        for path, counter in zip(files, counters, strict=True):
            for name, atoms, found in labelled_frames(path, labels):
                if is_isolated_atom(atoms):
                    counter.add_isolated_atom()
                else:
                    with naming(name):
                        reason = None if refuse is None else refuse(atoms, found)
                    if reason is not None:
                        counter.leave_out(reason)
                        continue
                    if without:
                        atoms, found = _without(atoms, found, labels, without)
                    counter.add(atoms, found)
                yield name, atoms, found

    written = 0
    with replacing(output) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for _, atoms, found in progress(frames()):
            copy = with_labels(atoms, found)
            if weight is not None and not is_isolated_atom(atoms):
                copy.info["config_weight"] = weight * found.weight
            write_xyz(file, [copy])
            written += 1
        if not written:
            raise NequIPMDError(f"no frame of {', '.join(files)} is left to write to {output}")
    return [counter.result() for counter in counters]


def _without(atoms: Atoms, found: FrameLabels, labels: Labels, kinds: Sequence[str]) -> tuple[Atoms, FrameLabels]:
    """A frame and its labels without those of some kinds, also under the names by which they were found."""
    copy = atoms.copy()
    for kind in ("stress", "virial") if "stress" in kinds else ():
        _forget(copy.info, getattr(labels, kind))
    _forget(copy.info, labels.energy if "energy" in kinds else None)
    _forget(copy.arrays, labels.forces if "forces" in kinds else None)
    return copy, replace(found, **dict.fromkeys(kinds))


def _forget(place: dict[str, Any], names: Names) -> None:
    for name in [names] if isinstance(names, str) else names or ():
        place.pop(name, None)


def part_sizes(count: int, fractions: Sequence[float]) -> list[int]:
    """Numbers of frames in parts; if the fractions are all of it, the first part takes what rounding leaves.

    Raises:
        NequIPMDError: fractions that are not positive or more than 1 in all, or a part without a frame.
    """
    if any(not 0 < f <= 1 for f in fractions) or sum(fractions) > 1 + 1e-9:
        raise NequIPMDError(f"fractions are positive and at most 1 in all, not {' '.join(map(str, fractions))}")
    sizes = [round(f * count) for f in fractions]
    if sum(fractions) > 1 - 1e-9:
        sizes[0] = count - sum(sizes[1:])
    if any(size < 1 for size in sizes):
        raise NequIPMDError(f"the parts of {count} frames would have {' '.join(map(str, sizes))}; ask for larger ones")
    return sizes


def split_file(path: str, fractions: Sequence[float], seed: int, folder: str | os.PathLike) -> dict[Path, int]:
    """Draw parts of a file at random and write them to ``train.extxyz``, ``validation.extxyz`` and ``test.extxyz``.

    Frames of a part stay in their order. Extended XYZ is copied as it stands, frames of other formats get ASE's names;
    isolated atoms all go to the first part, and do not count.

    Args:
        fractions: of one to three parts.
        folder: made if it does not exist; the files must not.

    Returns:
        The files and the number of frames in each, isolated atoms included.

    Raises:
        NequIPMDError: a file that cannot be read, parts that cannot be, a part that exists already.
    """
    isolated = np.array([is_isolated_atom(atoms) for _, atoms in readers.read(path)])
    sizes = part_sizes(int((~isolated).sum()), fractions)
    names = [Path(folder) / f"{part}.extxyz" for part in PARTS[: len(sizes)]]
    if existing := [str(name) for name in names if name.exists()]:
        raise NequIPMDError(f"{', '.join(existing)} exists already; give another folder, or remove it")
    part_of = np.full(len(isolated), -1)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~isolated))
    for part, chosen in enumerate(np.split(order, np.cumsum(sizes))[: len(sizes)]):
        part_of[chosen] = part
    part_of[isolated] = 0
    os.makedirs(folder, exist_ok=True)
    with ExitStack() as stack:
        files = [open(stack.enter_context(replacing(name)), "w", encoding="utf-8") for name in names]
        for file in files:
            stack.callback(file.close)  # before the file gets its name
        for part, text in zip(part_of.tolist(), _texts(path), strict=True):
            if part >= 0:
                text(files[part])
    return {name: int((part_of == part).sum()) for part, name in enumerate(names)}


def _texts(path: str) -> Iterator[Callable]:
    """For each frame a function that writes it to an open file."""
    for frame in readers.raw_frames(path):
        if isinstance(frame.content, str):
            yield lambda out, text=frame.content: out.write(text)
        else:
            yield lambda out, atoms=frame.content: write_xyz(out, [atoms])
