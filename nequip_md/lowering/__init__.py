"""From a model to a graph of a device's kernels: tracing, constant folding."""

from nequip_md.lowering.constants import fold_constants
from nequip_md.lowering.trace import trace

__all__ = ["fold_constants", "trace"]
