"""What cannot be laid out is refused before torch does something else; the message names the key."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ckptrun.config.model import TensorStyle
from ckptrun.config.parallelism import ParallelismKind
from ckptrun.errors import ConfigError
from ckptrun.model import ModelLayout
from ckptrun.parallelism.checks import check_choice, check_model, check_same_on_all_ranks, check_ties
from ckptrun.parallelism.naming import find_ties
from tests.parallelism.training import DEGREES, Recipe, Run
from tests.support.run_ranks import run_ranks


def _choice(kind: str, **changes) -> None:
    fine = {"degrees": {"shard": 2}, "plan": {"up": TensorStyle.colwise}, "blocks": [nn.Identity()]}
    check_choice(ParallelismKind(kind), **{**fine, "activation_checkpointing": False, **changes})


@pytest.mark.parametrize("kind", ["fsdp1", "hsdp1", "fsdp1_tp"])
def test_fsdp1_with_one_rank_to_shard_over_is_refused(kind):
    """torch would train each replica on its own, without a word."""
    with pytest.raises(ConfigError, match=rf"parallelism={kind} .*parallelism\.shard=1"):
        _choice(kind, degrees={"shard": 1})


@pytest.mark.parametrize("kind", ["tp", "fsdp_tp", "ddp_tp", "fsdp1_tp"])
def test_tensor_parallelism_without_anything_to_shard_is_refused(kind):
    with pytest.raises(ConfigError, match=r"model\.tensor_plan"):
        _choice(kind, plan={})


def test_recomputing_a_model_that_names_no_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"train\.activation_checkpointing=true .*model\.blocks"):
        _choice("ddp", blocks=[], activation_checkpointing=True)


@pytest.mark.parametrize("kind", list(ParallelismKind))
def test_a_choice_that_contradicts_nothing_is_accepted(kind):
    _choice(kind, activation_checkpointing=True)


def test_a_list_as_a_block_is_refused_with_what_to_write_instead():
    blocks = {"layers": nn.ModuleList([nn.Linear(2, 2)])}
    with pytest.raises(ConfigError, match=r"'layers' is a ModuleList.*'layers\.\*'"):
        check_model(nn.Sequential(*blocks.values()), ParallelismKind.fsdp, blocks)


def test_a_module_that_is_compiled_already_is_refused():
    model = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"))
    with pytest.raises(ConfigError, match=r"train\.compile=true"):
        check_model(model, ParallelismKind.none, {})


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


@pytest.mark.parametrize("kind", ["fsdp", "fsdp1", "hsdp_tp"])
def test_a_scalar_parameter_cannot_be_sharded(kind):
    with pytest.raises(ConfigError, match=f"parallelism={kind} cannot shard the scalar parameter 'scale'"):
        check_model(Scaled(), ParallelismKind(kind), {})


@pytest.mark.parametrize("kind", ["none", "ddp", "tp"])
def test_a_scalar_parameter_is_fine_where_nothing_is_sharded(kind):
    check_model(Scaled(), ParallelismKind(kind), {})


def test_ddp_without_a_parameter_to_train_is_refused():
    with pytest.raises(ConfigError, match=r"train\.freeze"):
        check_model(nn.Linear(2, 2).requires_grad_(False), ParallelismKind.ddp, {})


def _tied() -> nn.Module:
    model = nn.ModuleDict({"a": nn.ModuleDict({"x": nn.Linear(2, 2)}), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"]["x"].weight
    return model


def test_a_tie_between_two_units_is_refused_where_units_are_gathered_one_by_one():
    model = _tied()
    with pytest.raises(ConfigError, match=r"'a\.x\.weight' = 'b\.weight'.*\(a and none\)"):
        check_ties(model, find_ties(model), kind=ParallelismKind.fsdp, blocks=["a"])


@pytest.mark.parametrize(("kind", "blocks"), [("fsdp", []), ("fsdp1", []), ("ddp", ["a"]), ("tp", ["a"])])
def test_a_tie_within_one_unit_is_fine(kind, blocks):
    model = _tied()
    check_ties(model, find_ties(model), kind=ParallelismKind(kind), blocks=blocks)


def _tied_vocabulary() -> str:
    plan = {"token_embedding": TensorStyle.rowwise, "head": TensorStyle.colwise}
    layout = ModelLayout(blocks=("blocks.*",), tensor_plan=plan)
    try:
        Run(Recipe(kind="fsdp1_tp", tied=True), layout=layout)
    except ConfigError as error:
        return str(error)
    return "accepted"


@pytest.mark.distributed
def test_fsdp1_would_untie_what_tensor_parallelism_shards():
    for message in run_ranks(_tied_vocabulary, 4):
        assert "parallelism=fsdp1_tp cannot shard the tied tensor 'token_embedding.weight' = 'head.weight'" in message


def _built_by_rank(what: str) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if what == "values":
        with torch.no_grad():
            model[1].bias += dist.get_rank() // 2
    elif what == "names":
        model.add_module(f"of_rank_{dist.get_rank()}", nn.Linear(1, 1))
    elif what == "frozen":
        model[1].bias.requires_grad_(dist.get_rank() == 0)
    try:
        check_same_on_all_ranks(model)
    except ConfigError as error:
        return str(error)
    return "accepted"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("values", "'1.bias' on ranks [2] is not what it is on rank 0"),
        ("names", "'of_rank_0.weight' on ranks [1, 2]"),
        ("frozen", "'1.bias' on ranks [1, 2]"),
        ("nothing", "accepted"),
    ],
)
def test_a_model_that_is_built_differently_on_some_rank_is_refused_by_name(what, message):
    for said in run_ranks(_built_by_rank, 3, what):
        assert message in said


def test_the_recipes_of_the_tests_know_every_kind():
    assert set(DEGREES) == set(ParallelismKind)
