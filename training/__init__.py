"""Training of potentials (``nequip-md-train``), their data (``nequip-md-data``) and their errors (``nequip-md-evaluate``).

Packages, one for each concern:

* ``data``: files to frames, labels, graphs, stores of graphs, batches, statistics.
* ``steps``: one training step: loss, its gradient (eager, compiled, recorded), optimizers, averages, learning rates.
* ``evaluation``: predictions beside labels, and their errors.
* ``report``: tables, pictures and ``report.html``.

The run itself: ``config`` and ``step_config`` (what a training file may say), ``from_nequip`` (training files of upstream),
``prepare`` (all that comes before the first step), ``fine_tuning``, ``run`` (a whole run), ``lightning_module``, ``callbacks``,
``parallel`` (several processes), ``children`` (those that help one), ``determinism``, ``divergence`` (which frame failed), ``progress`` (the bar), ``loggers``,
``folder`` (the output folder), ``states`` and ``position`` (what a run resumes from), ``start`` (the functions for programs),
``cli``.
"""

from nequip_md.training.evaluation.evaluate import Evaluation, evaluate_model
from nequip_md.training.start import TrainingResult, check, train

__all__ = ["Evaluation", "TrainingResult", "check", "evaluate_model", "train"]
