"""The passes over a traced graph, in their order.

A graph holds a model and its derivatives, in operators of this package and of PyTorch. Each pass replaces groups of operators by
operators that do the work of several, if the backend has a form for these. Patterns that no pass recognises stay unchanged.
"""

from __future__ import annotations

from torch.fx import GraphModule

from nequip_md.kernels import Backend
from nequip_md.lowering.clean import remove_aliases
from nequip_md.lowering.convolutions import sum_convolutions
from nequip_md.lowering.mlps import join_energies, join_products
from nequip_md.lowering.rewriting import fill_values
from nequip_md.lowering.sums import sum_contractions, sum_into_embedding, sum_into_spreads
from nequip_md.lowering.uniform import remove_ones

PASSES = (
    remove_aliases,
    remove_ones,
    sum_contractions,
    join_energies,
    join_products,
    sum_into_spreads,
    sum_into_embedding,
    sum_convolutions,
)


def run_passes(module: GraphModule, backend: Backend) -> None:
    """Rewrite a traced graph for a device, in place.

    Args:
        module: from ``make_fx``, with symbolic or fixed sizes and values in ``meta["val"]``.
        backend: the kernels of the device; a pass uses only operators for which it has forms.
    """
    module.graph.eliminate_dead_code()
    fill_values(module)
    for run in PASSES:
        run(module, backend)
        module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
