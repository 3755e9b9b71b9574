"""Training of potentials: ``nequip-md-train config.yaml``.

One module for each concern. Data: ``readers`` (files to frames, a module for each format), ``units``, ``labels`` (what a
frame is labelled with), ``label_counts`` (which file has which), ``samples`` (labelled graphs), ``sample_set`` (those of
a data set), ``store``, ``store_writer`` and ``store_format`` (finished graphs in a file), ``data`` (splits and batches),
``digest`` (to know data again), ``statistics``. ``nequip-md-data``: ``data_cli``, ``data_files``, ``data_checks``,
``data_summary``, ``filters``. Training: ``config`` (what a YAML file may say), ``prepare`` (all that comes before the
first step), ``loss``, ``metrics``, ``ema``, ``schedule``, ``divergence`` (which frame failed), ``lightning_module`` (one
training step), ``callbacks``, ``folder`` (the output folder), ``states`` (what a run resumes from), ``report`` (tables),
``run`` (the whole of a training run), ``from_nequip`` (files of upstream's trainer), ``start`` (the functions for
programs), ``cli``.
"""

from nequip_md.training.start import TrainingResult, check, train

__all__ = ["TrainingResult", "check", "train"]
