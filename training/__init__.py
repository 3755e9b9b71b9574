"""Training of potentials: ``nequip-md-train config.yaml``.

One module for each concern: ``config`` (what a YAML file may say), ``labels`` (what a frame is labelled with),
``label_counts`` (which file has which), ``data`` (files to labelled graphs to batches), ``digest`` (to know data
again), ``statistics``, ``prepare`` (all that comes before the first step), ``loss``, ``metrics``, ``ema``,
``schedule``, ``divergence`` (which frame failed), ``lightning_module`` (one training step), ``callbacks``,
``progress`` (the bar), ``loggers``, ``folder`` (the output folder), ``states`` (what a run resumes from), ``report``
(tables), ``history`` (the epochs of a run), ``plots``, ``report_page`` (``report.html``), ``run`` (the whole of a training
run), ``from_nequip`` (files of upstream's trainer), ``start`` (the functions for programs), ``cli``.

``nequip-md-evaluate``: ``evaluate`` (the function for programs), ``evaluation`` (its parts), ``predictions`` (arrays beside
labels), ``error_groups``, ``evaluate_cli``.
"""

from nequip_md.training.evaluate import Evaluation, evaluate_model
from nequip_md.training.start import TrainingResult, check, train

__all__ = ["Evaluation", "TrainingResult", "check", "evaluate_model", "train"]
