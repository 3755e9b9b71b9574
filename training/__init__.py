"""Training of potentials: ``nequip-md-train config.yaml``.

One module for each concern: ``config`` (what a YAML file may say), ``data`` (files to labelled graphs to batches),
``digest`` (to know data again), ``statistics``, ``loss``, ``metrics``, ``ema``, ``schedule``, ``lightning_module``
(one training step), ``callbacks``, ``folder`` (the output folder), ``states`` (what a run resumes from), ``report``
(tables), ``run`` (the whole of a training run), ``cli``.
"""
