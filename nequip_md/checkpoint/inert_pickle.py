"""Read tensors out of a ``torch.package`` archive without importing or calling anything that it names.

Such an archive is a zip file with pickles of whole module trees, the source code of their classes, and the raw
storages. Unpickling normally imports that code. Here every class or function that a pickle names is replaced by an
inert record that swallows its arguments; only tensors and plain containers are rebuilt. So a hostile archive can at
worst yield wrong numbers or an error.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

_STORAGE_DTYPES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
_CONTAINERS = {("collections", "OrderedDict"): OrderedDict, ("builtins", "set"): set, ("builtins", "slice"): slice}


class Record:
    """Stands for an object of any class: keeps its state, runs nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        record = super().__new__(cls)
        record.state = {}
        return record

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def append(self, item: Any) -> None:
        """Items of list subclasses are of no use here."""

    def extend(self, items: Any) -> None:
        """As :meth:`append`."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """As :meth:`append`, for subclasses of dict."""


class _StorageType:
    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


def _parameter(data: Any, *rest: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(content))
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _parameter
        if module == "torch" and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        return _CONTAINERS.get((module, name), Record)

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) >= 3 and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
            return Record()
        key = str(pid[2])
        if key not in self._storages:
            content = self._archive.read(f"{self._root}/.data/{key}.storage")
            dtype = pid[1].dtype
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = torch.frombuffer(bytearray(content), dtype=dtype) if content else empty
        return self._storages[key]


def read_module_state(archive: zipfile.ZipFile, root: str, member: str) -> dict[str, Tensor]:
    """The ``state_dict`` of the module tree pickled in one member of an archive.

    Args:
        archive: the open file.
        root: name of its top folder.
        member: path of the pickle below it.

    Returns:
        Parameters and persistent buffers, in the order of ``Module.state_dict``.

    Raises:
        pickle.UnpicklingError, KeyError, RuntimeError, ...: damaged content, of any kind that unpickling gives.
    """
    tree = _Unpickler(archive.read(f"{root}/{member}"), archive, root).load()
    state: dict[str, Tensor] = {}
    _collect(tree, "", state)
    return state


def _collect(module: Any, prefix: str, state: dict[str, Tensor]) -> None:
    content = module.state if isinstance(module, Record) else {}
    transient = content.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in (content.get(group) or {}).items():
            if isinstance(value, Tensor) and not (group == "_buffers" and name in transient):
                state[prefix + name] = value
    for name, child in (content.get("_modules") or {}).items():
        _collect(child, f"{prefix}{name}.", state)
