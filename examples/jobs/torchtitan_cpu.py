"""What torchtitan 0.3.0 wants to train on CPU, with gloo: imported before anything of it."""

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
import torch._utils
from torch.distributed.fsdp import FSDPModule

# It asks for an accelerator, and imports kernels that run on none here.
torch._utils._get_available_device_type = lambda: "cpu"
sys.modules["torchtitan.distributed.minimal_async_ep.kernels"] = MagicMock()
device = SimpleNamespace(name="cpu", total_memory=1 << 34)
for name, answer in {
    "reset_peak_memory_stats": None,
    "empty_cache": None,
    "memory_stats": {},
    "get_device_name": "cpu",
    "get_device_properties": device,
}.items():
    setattr(torch.cpu, name, lambda *_, answer=answer: answer)

from torchtitan.distributed import utils  # noqa: E402
from torchtitan.models import llama3  # noqa: E402
from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: E402

# Flex attention has no backward on CPU.
llama3.get_attention_config = lambda _: ScaledDotProductAttention.Config()
# Gloo has neither barriers on a device nor scaled sums.
utils.set_pg_timeouts = lambda *_, **__: None
divide = FSDPModule.set_gradient_divide_factor


def set_gradient_divide_factor(module: FSDPModule, factor: float) -> None:
    divide(module, factor)
    module.set_force_sum_reduction_for_comms(True)


FSDPModule.set_gradient_divide_factor = set_gradient_divide_factor
