"""Training of potentials: ``nequip-md-train config.yaml``.

One module for each concern: ``config`` (what a YAML file may say), ``data`` (files to labelled graphs to batches),
``statistics``, ``loss``, ``metrics``, ``ema``, ``schedule``, ``lightning_module`` (one training step), ``callbacks``,
``report`` (tables), ``run`` (the whole of a training run), ``cli``.
"""
