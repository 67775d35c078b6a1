"""Run a command in double precision: `python in_double.py COMMAND ...`.

Two runs that differ in nothing but the order of their sums agree to 1e-9 or so in it, where float32's
rounding would hide a small mistake.
"""

from __future__ import annotations

import sys

import torch

from keepaug.__main__ import main

torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign,assignment]
torch.float32 = torch.float64  # type: ignore[misc]
sys.exit(main(sys.argv[1:]))
