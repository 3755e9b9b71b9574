"""TF32 in cuBLAS, a setting of the whole process."""

from __future__ import annotations

import torch


class matmul_precision:
    """Context in which cuBLAS may use TF32 (``tf32``) or may not (any other precision); the former setting is restored after it."""

    def __init__(self, precision: str):
        self.allow = precision == "tf32"

    def __enter__(self):
        self.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.allow

    def __exit__(self, *_):
        torch.backends.cuda.matmul.allow_tf32 = self.before
