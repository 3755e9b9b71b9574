"""One training step.

``loss``, ``step`` (loss and gradient of a batch, eager), ``compiled_step`` (the same as one compiled graph), ``recorded_step``
(that as CUDA graphs, and which of the three a run takes), ``update`` (what follows the gradient), ``optimizers``, ``ema``
(averages of the weights), ``schedule`` (learning rates and time limits).
"""
