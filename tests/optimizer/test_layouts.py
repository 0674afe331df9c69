"""Layouts where parameters are on a device; the meta device stands in for one."""

import pytest
import torch

from ckptrun.errors import UnsupportedLeafError
from ckptrun.optimizer.layouts import DEVICE, HOST, PARAMETER, exceptional_layout, make_zeros, usual_layout

ON_DEVICE = torch.empty(3, 2, device="meta")
ON_HOST = torch.empty(3, 2)


@pytest.mark.parametrize(
    ("options", "layout"),
    [({}, HOST), ({"fused": None}, HOST), ({"fused": True}, DEVICE), ({"capturable": True}, DEVICE)],
)
def test_step_counts_are_on_the_host_unless_a_kernel_reads_them(options, layout):
    assert usual_layout("step", options) == layout
    assert usual_layout("exp_avg", options) == PARAMETER


@pytest.mark.parametrize(("layout", "device"), [(PARAMETER, "meta"), (DEVICE, "meta"), (HOST, "cpu")])
def test_zeros_are_made_where_the_layout_says(layout, device):
    made = make_zeros(layout, ON_DEVICE, dtype=torch.float64, shape=(3, 2), name="leaf")
    assert (made.device.type, made.dtype, tuple(made.shape)) == (device, torch.float64, (3, 2))


@pytest.mark.parametrize(
    ("tensor", "parameter", "usual", "layout"),
    [
        (torch.empty(3, 2, device="meta"), ON_DEVICE, PARAMETER, None),
        (torch.empty((), device="meta"), ON_DEVICE, HOST, DEVICE),
        (torch.empty(()), ON_DEVICE, HOST, None),
        (torch.empty(3, 2), ON_DEVICE, PARAMETER, HOST),
        (torch.empty(3, 1, device="meta"), ON_DEVICE, PARAMETER, DEVICE),
        (torch.empty(()), ON_HOST, HOST, None),
        (torch.empty(()), ON_HOST, PARAMETER, DEVICE),
    ],
)
def test_what_lies_otherwise_than_usual_is_written_down(tensor, parameter, usual, layout):
    assert exceptional_layout(tensor, parameter, usual=usual, name="leaf") == layout


def test_a_tensor_on_a_third_device_is_refused_by_name():
    with pytest.raises(UnsupportedLeafError, match=r"Leaf 'moment' is a plain tensor of shape \(3, 2\) on meta"):
        exceptional_layout(ON_DEVICE, ON_HOST, usual=PARAMETER, name="moment")
