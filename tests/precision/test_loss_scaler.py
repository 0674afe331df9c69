import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from ckptrun.config.precision import PrecisionConfig, PrecisionKind
from ckptrun.errors import InternalError, StateMismatchError
from ckptrun.precision import LossScaler
from ckptrun.values import canonical_bytes
from tests.support.run_ranks import run_ranks

CPU = torch.device("cpu")


def scaler(kind=PrecisionKind.fp16, scale=1024.0, interval=3):
    return LossScaler(PrecisionConfig(kind=kind, initial_scale=scale, growth_interval=interval), device=CPU)


def parameter(*gradient, dtype=torch.float32):
    found = nn.Parameter(torch.zeros(len(gradient), dtype=dtype))
    found.grad = torch.tensor(gradient, dtype=dtype)
    return found


def run_steps(found, pattern):
    """One step per letter: f(inite) or o(verflow)."""
    for letter in pattern:
        assert found.unscale_([parameter(1.0 if letter == "f" else math.inf)]) is (letter == "f")
        found.update()
    return found.state_dict()


def test_gradients_are_those_of_the_unscaled_loss_bit_for_bit():
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 3), torch.randn(7, 5)
    model(inputs).square().mean().backward()
    expected = [value.grad.clone() for value in model.parameters()]
    model.zero_grad()
    found = scaler()
    found.scale(model(inputs).square().mean()).backward()
    assert not torch.equal(model.weight.grad, expected[0])
    assert found.unscale_(model.parameters()) is True
    assert all(torch.equal(value.grad, wanted) for value, wanted in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_gradient_that_is_not_finite_is_found_among_many(bad, dtype):
    found = scaler()
    parameters = [parameter(1.0, 2.0), parameter(3.0), nn.Parameter(torch.zeros(2)), parameter(1.0, bad, dtype=dtype)]
    assert found.unscale_(parameters) is False


def test_no_gradients_at_all_are_finite():
    assert scaler().unscale_([]) is True


def test_the_scale_halves_after_an_overflow_and_doubles_after_the_interval():
    assert run_steps(scaler(), "ff") == {"scale": 1024.0, "growth_tracker": 2}
    assert run_steps(scaler(), "fff") == {"scale": 2048.0, "growth_tracker": 0}
    assert run_steps(scaler(), "ffoff") == {"scale": 512.0, "growth_tracker": 2}


def test_growth_and_backoff_are_those_of_torch():
    pattern = "ffofffffofffoof"
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    for letter in pattern:
        value = parameter(1.0 if letter == "f" else math.inf)
        optimizer = torch.optim.SGD([value], lr=0.1)
        theirs.scale(torch.ones(()))
        theirs.unscale_(optimizer)
        theirs.update()
    assert run_steps(scaler(), pattern) == {
        "scale": theirs.get_scale(),
        "growth_tracker": theirs.state_dict()["_growth_tracker"],
    }


def test_the_scale_stays_positive_and_finite_however_long_a_run_diverges():
    assert run_steps(scaler(), "o" * 200)["scale"] > 0
    assert math.isfinite(1 / torch.tensor(run_steps(scaler(), "o" * 200)["scale"]).item())
    assert math.isfinite(torch.tensor(run_steps(scaler(interval=1), "f" * 200)["scale"]).item())


@pytest.mark.parametrize("done", ["", "ff", "ffofff"])
def test_a_loaded_scaler_goes_on_with_the_same_bits(done):
    first = scaler(scale=1000.1)
    state = run_steps(first, done)
    second = scaler()
    for _ in range(2):
        second.load_state_dict(state)
        assert canonical_bytes(second.state_dict(), name="s") == canonical_bytes(state, name="s")
    assert run_steps(second, "fofff") == run_steps(first, "fofff")


@pytest.mark.parametrize("kind", [PrecisionKind.fp32, PrecisionKind.bf16])
def test_without_fp16_nothing_is_touched(kind):
    found = scaler(kind)
    loss, value = torch.ones(()), parameter(math.inf)
    assert found.enabled is False
    assert found.scale(loss) is loss
    assert found.unscale_([value]) is True
    assert value.grad.item() == math.inf
    found.update()
    assert found.state_dict() == {}
    found.load_state_dict({})


def test_a_state_of_another_precision_is_refused():
    with pytest.raises(StateMismatchError, match=r"exclude=\[scaler\]") as caught:
        scaler().load_state_dict({})
    assert caught.value.leaves == ("scaler.growth_tracker", "scaler.scale")
    with pytest.raises(StateMismatchError):
        scaler(PrecisionKind.fp32).load_state_dict(scaler().state_dict())
    with pytest.raises(StateMismatchError):
        scaler().load_state_dict({"scale": math.nan, "growth_tracker": 0})


def test_calls_out_of_order_are_errors():
    found = scaler()
    with pytest.raises(InternalError, match="before unscale_"):
        found.update()
    found.unscale_([])
    with pytest.raises(InternalError, match="twice"):
        found.unscale_([])


def _mixed_parameters():
    """What tensor parallelism and FSDP leave: a plain parameter, DTensors on one axis, on two, and with empty shards."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    layouts = [
        None,
        (mesh["shard"], [Shard(0)], 4),
        (mesh, [Shard(0), Replicate()], 4),
        (mesh["tensor"], [Shard(0)], 1),
    ]
    parameters = []
    for layout in layouts:
        if layout is None:
            parameters.append(parameter(1.0, 2.0))
            continue
        submesh, placements, size = layout
        value = nn.Parameter(distribute_tensor(torch.zeros(size), submesh, placements))
        value.grad = distribute_tensor(torch.ones(size), submesh, placements)
        parameters.append(value)
    return parameters


def _local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _decide_on_mixed_gradients(broken_rank, which):
    parameters = _mixed_parameters()
    local = _local(parameters[which].grad)
    if dist.get_rank() == broken_rank and local.numel():
        local[0] = math.nan
    found = scaler()
    finite = found.unscale_(parameters)
    found.update()
    return finite, found.state_dict(), [_local(value.grad).tolist() for value in parameters]


def _decide_on_flat_parts(broken_rank):
    torch.manual_seed(0)
    model = FullyShardedDataParallel(nn.Linear(3, 3), use_orig_params=True, device_id=CPU)
    model(torch.ones(1, 3)).sum().backward()
    for value in model.parameters():
        if dist.get_rank() == broken_rank and value.grad is not None and value.grad.numel():
            value.grad[0] = math.inf
    found = scaler()
    return found.unscale_(model.parameters())


def _decide_everything():
    mixed = [_decide_on_mixed_gradients(rank, which) for rank, which in ((None, 0), (3, 0), (1, 1), (2, 2), (0, 3))]
    return mixed, [_decide_on_flat_parts(rank) for rank in (None, 2)]


@pytest.fixture(scope="module")
def decisions():
    """What each of four ranks decided."""
    return run_ranks(_decide_everything, 4)


@pytest.mark.distributed
def test_mixed_sharded_gradients_are_unscaled_everywhere(decisions):
    for mixed, _ in decisions:
        finite, _, gradients = mixed[0]
        assert finite is True
        assert gradients[0] == [1 / 1024, 2 / 1024]
        assert {value for values in gradients[1:] for value in values} == {1 / 1024}


@pytest.mark.distributed
@pytest.mark.parametrize("case", [1, 2, 3, 4])
def test_an_overflow_on_one_rank_in_any_layout_is_decided_equally_on_all(decisions, case):
    for mixed, _ in decisions:
        finite, state, _ = mixed[case]
        assert (finite, state) == (False, {"scale": 512.0, "growth_tracker": 0})


@pytest.mark.distributed
def test_flat_parts_of_fully_sharded_data_parallel_are_decided_equally(decisions):
    assert [flat for _, flat in decisions] == [[True, False]] * 4
