import pytest
from torch import nn

from ckptrun.errors import ConfigError
from ckptrun.parallelism import clean_name
from ckptrun.parallelism.naming import find_ties, matching_modules, named_tensors


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
        self.register_buffer("mask", nn.Parameter().data, persistent=False)
        self.module[1][0].weight = self.module[0][0].weight


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.up.weight", "blocks.0.up.weight"),
        ("blocks.0._checkpoint_wrapped_module._orig_mod.up.weight", "blocks.0.up.weight"),
        ("module.weight", "module.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
    ],
)
def test_clean_name_removes_what_wrappers_put_in_between_and_nothing_else(name, clean):
    assert clean_name(name) == clean


def test_a_wildcard_stands_for_one_part_of_a_name():
    assert [name for name, _ in matching_modules(Tower(), "module.*", key="k")] == ["module.0", "module.1"]


def test_a_wildcard_may_stand_for_a_piece_of_a_part():
    assert [name for name, _ in matching_modules(Tower(), "mod*.1.[0]", key="k")] == ["module.1.0"]


def test_a_pattern_without_a_match_is_refused_with_key_pattern_and_some_modules():
    with pytest.raises(ConfigError, match=r"model\.blocks: .*'layers\.\*'.*module, module\.0, module\.0\.0"):
        matching_modules(Tower(), "layers.*", key="model.blocks")


def test_named_tensors_has_buffers_that_are_not_saved_by_torch_and_both_names_of_a_tie():
    names = [name for name, _ in named_tensors(Tower())]
    assert {"mask", "module.0.1.running_mean", "module.0.0.weight", "module.1.0.weight"} <= set(names)


def test_ties_are_found_by_identity():
    assert find_ties(Tower()) == (("module.0.0.weight", "module.1.0.weight"),)
