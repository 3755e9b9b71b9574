"""Declarations of the C functions through which compiled code calls an operator, in AOTInductor's calling convention."""

from __future__ import annotations

from torch._ops import OpOverload

_ARGUMENTS = {
    "Tensor": ["AtenTensorHandle"],
    "int": ["int64_t"],
    "float": ["double"],
    "bool": ["int32_t"],
    "List[int]": ["const int64_t*", "int64_t"],
}


def declaration(operator: OpOverload, device: str) -> str:
    """Declaration of the C function for an operator on ``cpu`` or ``cuda``: its arguments, then a pointer for each result.

    For an operator without results, some releases of PyTorch pass a null pointer in place of a result, others pass nothing.
    """
    schema, arguments = operator._schema, []
    for argument in schema.arguments:
        arguments += _ARGUMENTS[str(argument.type)]
    arguments += ["AtenTensorHandle*"] * len(schema.returns) or ["void* = nullptr"]
    return f"AOTITorchError {function_name(operator, device)}({', '.join(arguments)})"


def function_name(operator: OpOverload, device: str) -> str:
    return f"aoti_torch_{device}_{operator._schema.name.split('::')[1]}"


def shims(operators, device: str) -> dict[OpOverload, list[str]]:
    """Inductor's option ``aot_inductor.custom_ops_to_c_shims`` for these operators."""
    return {operator: [declaration(operator, device)] for operator in operators}
