"""Data of a training run, from files to batches, and ``nequip-md-data``.

``readers`` (files to frames, a module for each format), ``units``, ``labels`` (what a frame is labelled with),
``label_counts`` (which file has which), ``samples`` (labelled graphs), ``sample_set`` (those of a data set), ``store``,
``store_writer`` and ``store_format`` (finished graphs in a file), ``batches`` (which frames make a batch of which process),
``buffers`` (batches in one piece), ``stacked`` (samples that stay on a GPU), ``data_module`` (splits and loaders),
``digest`` (to know data again), ``statistics``.

The command: ``cli``, ``files`` (conversion and splits), ``checks``, ``summary``, ``filters``.
"""
