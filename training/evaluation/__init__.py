"""Errors of models on labelled structures, and ``nequip-md-evaluate``.

``evaluate`` (the function for programs), ``parts`` (its parts), ``predictions`` (arrays beside labels), ``error_groups``,
``metrics`` (errors during training), ``cli``.
"""
