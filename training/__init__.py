"""Training of potentials: ``nequip-md-train config.yaml``.

One module for each concern. Data: ``readers`` (files to frames, a module for each format), ``units``, ``labels`` (what a
frame is labelled with), ``label_counts`` (which file has which), ``samples`` (labelled graphs), ``sample_set`` (those of
a data set), ``store``, ``store_writer`` and ``store_format`` (finished graphs in a file), ``data`` (splits and loaders),
``batches`` (which frames make a batch of which process), ``digest`` (to know data again), ``statistics``.
``nequip-md-data``: ``data_cli``, ``data_files``, ``data_checks``, ``data_summary``, ``filters``.

Training: ``config`` (what a YAML file may say), ``prepare`` (all that comes before the first step), ``fine_tuning``, ``loss``,
``step`` (loss and gradient of a batch), ``compiled_step``, ``optimizers``, ``ema``, ``schedule``, ``parallel`` (several
processes), ``metrics``, ``divergence`` (which frame failed), ``lightning_module``, ``callbacks``, ``progress`` (the bar),
``loggers``, ``folder`` (the output folder), ``states`` (what a run resumes from), ``report`` (tables), ``history`` (the epochs
of a run), ``plots``, ``report_page`` (``report.html``), ``run`` (the whole of a training run), ``from_nequip`` (files of
upstream's trainer), ``start`` (the functions for programs), ``cli``.

``nequip-md-evaluate``: ``evaluate`` (the function for programs), ``evaluation`` (its parts), ``predictions`` (arrays beside
labels), ``error_groups``, ``evaluate_cli``.
"""

from nequip_md.training.evaluate import Evaluation, evaluate_model
from nequip_md.training.start import TrainingResult, check, train

__all__ = ["Evaluation", "TrainingResult", "check", "evaluate_model", "train"]
