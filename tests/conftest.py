"""Before anything imports triton: without a GPU its kernels run in triton's interpreter.

In CI, hypothesis draws the same examples every time.
"""

import os

import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile(
    "ci", derandomize=True, suppress_health_check=[HealthCheck.filter_too_much]
)
if os.environ.get("CI"):
    settings.load_profile("ci")
