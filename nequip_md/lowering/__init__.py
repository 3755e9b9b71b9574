"""From a model to a graph of a device's kernels: tracing, constant folding, passes that fuse operators."""

from nequip_md.lowering.constants import fold_constants
from nequip_md.lowering.passes import run_passes
from nequip_md.lowering.trace import lower, trace

__all__ = ["fold_constants", "lower", "run_passes", "trace"]
