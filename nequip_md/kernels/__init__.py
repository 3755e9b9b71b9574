"""What a device runs in place of the operators' references: one folder and one :class:`Backend` for each kind of device.

A kernel is added in the folder of its device: the kernel with its launcher, and a :class:`Form` in that folder's
``backend.py``, which says when it is taken.
"""

from nequip_md.kernels.backend import Backend, Form
from nequip_md.kernels.select import backend_for, training_backend

__all__ = ["Backend", "Form", "backend_for", "training_backend"]
