"""The engine's C header in Python: its structures, its functions and its status codes."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_longlong, c_size_t, c_void_p
from pathlib import Path

OK, BAD_FILE, BAD_MODEL, BAD_DEVICE, BAD_INPUT, BAD_RESULT, INTERNAL = range(7)
HOST_MEMORY, GPU_MEMORY = range(2)

TRANSFER = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_void_p, c_void_p, c_longlong)


class Versioned(Structure):
    """A structure of the C header, with its size in the first field."""

    def __init__(self, **fields):
        super().__init__(**{"struct_size": ctypes.sizeof(type(self)), **fields})


class Options(Versioned):
    _fields_ = [
        ("struct_size", c_size_t),
        ("device", c_char_p),
        ("device_index", c_int),
        ("num_threads", c_int),
        ("energy_factor", c_double),
        ("max_edges", c_longlong),
        ("no_replay", c_int),
        ("no_guard", c_int),
    ]


class Exchange(Versioned):
    _fields_ = [
        ("struct_size", c_size_t),
        ("transfer", TRANSFER),
        ("context", c_void_p),
        ("num_sent", c_int),
        ("sent", POINTER(c_int)),
        ("num_received", c_int),
        ("received", POINTER(c_int)),
        ("num_images", c_int),
        ("images", POINTER(c_int)),
        ("originals", POINTER(c_int)),
    ]


class System(Versioned):
    _fields_ = [
        ("struct_size", c_size_t),
        ("num_all", c_int),
        ("positions", POINTER(c_double)),
        ("types", POINTER(c_int)),
        ("num_caller_types", c_int),
        ("type_map", POINTER(c_int)),
        ("num_centres", c_int),
        ("centres", POINTER(c_int)),
        ("num_neighbours", POINTER(c_int)),
        ("neighbours", POINTER(POINTER(c_int))),
        ("skin", c_double),
        ("neighbour_mask", c_int),
        ("lists_changed", c_int),
        ("owner", POINTER(c_int)),
        ("cell", POINTER(c_double)),
        ("periodic", c_int * 3),
        ("memory", c_int),
        ("stream", c_void_p),
        ("exchange", POINTER(Exchange)),
    ]


class Results(Versioned):
    _fields_ = [
        ("struct_size", c_size_t),
        ("energy", c_double),
        ("virial", c_double * 6),
        ("forces", POINTER(c_double)),
        ("atom_energies", POINTER(c_double)),
        ("atom_virials", POINTER(c_double)),
        ("centroid_virials", POINTER(c_double)),
        ("failed_atom", c_int),
        ("warned_atom", c_int),
        ("warned_neighbour", c_int),
        ("num_candidates", c_longlong),
        ("num_edges", c_longlong),
        ("num_evaluated", c_longlong),
        ("num_pieces", c_longlong),
        ("replayed", c_int),
        ("seconds_lists", c_double),
        ("seconds_model", c_double),
        ("seconds_results", c_double),
    ]


def open_engine(folder: Path) -> ctypes.CDLL:
    """The library that ``nequip-md-lammps build`` has put into a folder."""
    loaded = ctypes.CDLL(str(folder / "libnequip_md_engine.so"))
    loaded.nequip_md_load.argtypes = [c_char_p, POINTER(Options), POINTER(c_void_p), c_char_p, c_size_t]
    loaded.nequip_md_free.argtypes = [c_void_p]
    loaded.nequip_md_evaluate.argtypes = [c_void_p, POINTER(System), POINTER(Results)]
    loaded.nequip_md_isolated_energy.argtypes = [c_void_p, c_int, POINTER(c_double)]
    for name, result in {
        "last_error": c_char_p,
        "last_warning": c_char_p,
        "metadata": c_char_p,
        "type_name": c_char_p,
        "cutoff": c_double,
        "pair_cutoff": c_double,
    }.items():
        function = getattr(loaded, f"nequip_md_{name}")
        function.restype = result
        function.argtypes = [
            c_void_p,
            *{"metadata": [c_char_p], "type_name": [c_int], "pair_cutoff": [c_int, c_int]}.get(name, []),
        ]
    for name in ("num_types", "message_passing_layers"):
        getattr(loaded, f"nequip_md_{name}").argtypes = [c_void_p]
    return loaded


def load_model(library: ctypes.CDLL, path: Path, **options) -> c_void_p | tuple[int, str]:
    """A handle of the artifact, or the status and message if it is refused."""
    handle, message = c_void_p(), ctypes.create_string_buffer(1000)
    status = library.nequip_md_load(str(path).encode(), byref(Options(**options)), byref(handle), message, len(message))
    if status == OK:
        return handle
    assert not handle.value
    return status, message.value.decode()


def c_array(values, kind):
    return (kind * max(len(values), 1))(*values)
