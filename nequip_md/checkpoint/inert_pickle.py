"""Read tensors out of a ``torch.package`` archive without importing or calling anything that it names.

Such an archive is a zip file with pickles of whole module trees, the source code of their classes, and the raw
storages. Unpickling normally imports that code. Here the operations of a pickle are followed one by one: plain values and
containers are built, and every class, function and instance is an inert record of its name, arguments and state. So a
hostile archive can at worst yield wrong numbers or an error. Its cost is bounded as well: by the number of operations, and
then by the number and depth of the modules that are visited, which a pickle of a few lines can multiply by naming one module
many times.
"""

from __future__ import annotations

import pickletools
import zipfile
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

_OPERATIONS = 1_000_000
_VISITS = 100_000
_DEPTH = 50
_NAME_LENGTH = 1000
_DTYPES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}


class Record:
    """Stands for a class, a function or what one of them returned; runs nothing.

    Attributes:
        name: module and name of the class or function, separated by a space.
        arguments: what it was called with; () for the class or function itself.
        state: what ``__setstate__`` would be given.
        items: entries with text as key, for subclasses of dict.
    """

    __slots__ = ("name", "arguments", "state", "items")

    def __init__(self, name: str, arguments: tuple = ()):
        self.name = name
        self.arguments = arguments
        self.state: Any = None
        self.items: dict[str, Any] = {}


class _Stack(list):
    """Values, with marks between them."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[int] = []

    def pop_to_mark(self) -> list:
        start = self.marks.pop()
        values = self[start:]
        del self[start:]
        return values


def read_pickle(content: bytes) -> Any:
    """The objects that a pickle describes, with a :class:`Record` for everything that is not a plain value or container.

    Time and memory grow with the length of ``content`` alone. Entries of dictionaries whose key is no text are left out.

    Raises:
        UnpicklingError: an operation that ``torch.package`` (pickle protocol 3) does not write, or more than a million of them.
        IndexError, KeyError, TypeError, ValueError, AttributeError: damaged content.
    """
    stack, memo = _Stack(), {}
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if count == _OPERATIONS:
            raise UnpicklingError(f"a pickle of more than {_OPERATIONS} operations")
        match operation.name:
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "GLOBAL":
                stack.append(Record(argument))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(Record(called.name, arguments))
            case "BINPERSID":
                stack.append(Record("storage", stack.pop()))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(stack.pop_to_mark()))
            case "APPEND":
                _extend(stack, [stack.pop()])
            case "APPENDS":
                _extend(stack, stack.pop_to_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack, [key, value])
            case "SETITEMS":
                _update(stack, stack.pop_to_mark())
            case "POP":
                stack.pop()
            case "POP_MARK":
                stack.pop_to_mark()
            case "MARK":
                stack.marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE" as name:
                stack.append(name == "NEWTRUE")
            case "PROTO":
                pass
            case "STOP":
                break
            case name if name.startswith(("BININT", "LONG", "BINFLOAT", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES")):
                stack.append(argument)
            case name:
                raise UnpicklingError(f"operation {name}")
    return stack.pop()


def _extend(stack: _Stack, values: list) -> None:
    # items of list subclasses are of no use here
    if isinstance(stack[-1], list):
        stack[-1].extend(values)


def _update(stack: _Stack, values: list) -> None:
    target = stack[-1].items if isinstance(stack[-1], Record) else stack[-1]
    # the hash of a nested tuple can take for ever
    target.update((key, value) for key, value in zip(values[::2], values[1::2], strict=True) if isinstance(key, str))


def read_module_state(archive: zipfile.ZipFile, root: str, member: str) -> dict[str, Tensor]:
    """The ``state_dict`` of the module tree pickled in one member of an archive.

    Args:
        archive: the open file.
        root: name of its top folder.
        member: path of the pickle below it.

    Returns:
        Parameters and persistent buffers, in the order of ``Module.state_dict``. Tensors may be views of one storage, and
        repeat its numbers.

    Raises:
        UnpicklingError, KeyError, RuntimeError, ...: damaged content, of any kind that unpickling gives.
    """
    reader = _StateReader(archive, root)
    reader.collect(read_pickle(archive.read(f"{root}/{member}")), "", 0)
    return reader.state


class _StateReader:
    """Walks through a tree of modules and keeps their tensors in ``state``."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self.state: dict[str, Tensor] = {}
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}
        self._visits = 0

    def collect(self, module: Any, prefix: str, depth: int) -> None:
        """Keep the tensors of a module and of those in it, under names that begin with ``prefix``."""
        self._visit(prefix, depth)
        content = module.state if isinstance(module, Record) and isinstance(module.state, dict) else {}
        transient = set(_listed(content.get("_non_persistent_buffers_set")))
        self._visits += len(transient)
        for group in ("_parameters", "_buffers"):
            for name, value in _entries(content.get(group)).items():
                self._visit(name, depth)
                tensor = self._tensor(value)
                if tensor is not None and not (group == "_buffers" and name in transient):
                    self.state[prefix + name] = tensor
        for name, child in _entries(content.get("_modules")).items():
            self.collect(child, f"{prefix}{name}.", depth + 1)

    def _visit(self, name: str, depth: int) -> None:
        self._visits += 1
        if self._visits > _VISITS or depth > _DEPTH or len(name) > _NAME_LENGTH:
            raise UnpicklingError(f"more than {_VISITS} modules and tensors, or nested more than {_DEPTH} deep")

    def _tensor(self, value: Any) -> Tensor | None:
        if isinstance(value, Record) and value.name.startswith("torch._utils _rebuild_parameter"):
            value = value.arguments[0]
        if not isinstance(value, Record) or value.name != "torch._utils _rebuild_tensor_v2":
            return None
        storage, offset, size, stride = value.arguments[:4]
        return torch.as_strided(self._storage(*storage.arguments[1:3]), size, stride, offset)

    def _storage(self, kind: Record, key: str | int) -> Tensor:
        if not isinstance(key, (str, int)):
            raise TypeError("a storage without a name")
        if key not in self._storages:
            dtype = _DTYPES[kind.name]
            content = self._archive.read(f"{self._root}/.data/{key}.storage")
            self._storages[key] = (
                torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def _entries(value: Any) -> dict[str, Any]:
    """Content of a dictionary, or of an instance of a subclass such as OrderedDict."""
    return value.items if isinstance(value, Record) else value or {}


def _listed(value: Any) -> list[str]:
    """Content of a set, which is a call with a list."""
    values = value.arguments[0] if isinstance(value, Record) and value.arguments else []
    return [item for item in values if isinstance(item, str)]
