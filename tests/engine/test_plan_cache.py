"""A plan is made once, and again as soon as the structure of the state is another one, on any rank."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ckptrun import HostStager, PlanCache, ShardWriter
from ckptrun.engine.layout import step_folder
from ckptrun.engine.read_state import read_state
from tests.support.bits import all_bits
from tests.support.run_ranks import run_ranks


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Grows with each plan that is made."""
    made: list[str] = []
    for name in ("create_local_plan", "create_global_plan"):
        real = getattr(DefaultSavePlanner, name)

        def counted(self: Any, *args: Any, _real: Any = real, _name: str = name) -> Any:
            made.append(_name)
            return _real(self, *args)

        monkeypatch.setattr(DefaultSavePlanner, name, counted)
    return made


def save(state: dict[str, Any], root: Path, step: int, cache: PlanCache) -> None:
    dcp.save(
        state,
        storage_writer=ShardWriter(step_folder(root, step)),
        planner=cache.planner(),
        no_dist=not dist.is_initialized(),
    )


def test_the_same_structure_is_planned_once_and_each_save_has_its_own_values(
    tmp_path: Path, planned: list[str]
) -> None:
    cache = PlanCache()
    for step in range(3):
        state = {"w": torch.full((100,), step), "nested": {"b": torch.ones(2) * step}, "step": step}
        save(state, tmp_path, step, cache)
        found = read_state(step_folder(tmp_path, step))
        assert all_bits(found) == all_bits(state)
        assert found["step"] == step
    assert planned == ["create_local_plan", "create_global_plan"]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dtype": lambda state: state.update(w=state["w"].double()),
    "shape": lambda state: state.update(w=torch.ones(101)),
    "a leaf more": lambda state: state.update(more=torch.ones(3)),
    "a leaf less": lambda state: state.pop("v"),
    "another order": lambda state: state.update(w=state.pop("w")),
    "a tensor becomes a value": lambda state: state.update(v=3),
    "a value becomes a tensor": lambda state: state.update(step=torch.ones(1)),
    "a name": lambda state: state.update(u=state.pop("v")),
    "the place in the nested state": lambda state: state.update({"nested.b": state.pop("nested")["b"]}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_structure_is_planned_anew(tmp_path: Path, planned: list[str], change: str) -> None:
    cache = PlanCache()
    state: dict[str, Any] = {"w": torch.ones(100), "v": torch.ones(3), "nested": {"b": torch.ones(2)}, "step": 1}
    save(state, tmp_path, 1, cache)
    CHANGES[change](state)
    planned.clear()
    save(state, tmp_path, 2, cache)
    assert planned == ["create_local_plan", "create_global_plan"]
    found = read_state(step_folder(tmp_path, 2))
    assert found.keys() == state.keys()
    assert all_bits(found) == all_bits(state)


def test_two_states_with_a_cache_each_do_not_disturb_each_other(tmp_path: Path) -> None:
    caches = PlanCache(), PlanCache()
    states: tuple[dict[str, Any], ...] = ({"w": torch.ones(4)}, {"w": torch.zeros(4), "b": torch.ones(1)})
    for step in range(4):
        save(states[step % 2], tmp_path, step, caches[step % 2])
        assert all_bits(read_state(step_folder(tmp_path, step))) == all_bits(states[step % 2])


def _ranks_change_alone(root: Path) -> list[int]:
    cache, mesh, counts = PlanCache(), init_device_mesh("cpu", (2,)), []
    made: list[str] = []
    real = DefaultSavePlanner.create_local_plan
    DefaultSavePlanner.create_local_plan = lambda self: (made.append("x"), real(self))[1]  # type: ignore[method-assign]
    placements = [Shard(0)]
    for step in range(5):
        values = torch.arange(20.0).reshape(10, 2) * (step + 1)
        if step == 3:
            placements = [Replicate()]
        state: dict[str, Any] = {"w": distribute_tensor(values, mesh, placements)}
        if step == 2 and dist.get_rank() == 1:
            state["only.on.rank.1"] = torch.full((3,), step)
        save(state, root, step, cache)
        counts.append(len(made))
    return counts


@pytest.mark.distributed
def test_ranks_plan_anew_each_for_itself_and_when_a_layout_changes(tmp_path: Path) -> None:
    assert run_ranks(_ranks_change_alone, 2, tmp_path) == [[1, 1, 1, 2, 2], [1, 1, 2, 3, 3]]
    for step in range(5):
        found = read_state(step_folder(tmp_path, step))
        assert torch.equal(found["w"], torch.arange(20.0).reshape(10, 2) * (step + 1))
        assert ("only.on.rank.1" in found) == (step == 2)


def _save_beside(root: Path, kind: AsyncCheckpointerType) -> None:
    cache = PlanCache()
    stager = HostStager(shared=kind is AsyncCheckpointerType.PROCESS)
    for step in range(3):
        dcp.async_save(
            {"w": torch.full((10 + step // 2,), step), "step": step},
            storage_writer=ShardWriter(step_folder(root, step)),
            planner=cache.planner(),
            async_stager=stager,
            async_checkpointer_type=kind,
        ).result()


@pytest.mark.distributed
@pytest.mark.parametrize(
    "kind", [AsyncCheckpointerType.THREAD, pytest.param(AsyncCheckpointerType.PROCESS, marks=pytest.mark.slow)]
)
def test_saves_beside_training_use_a_plan_again_too(tmp_path: Path, kind: AsyncCheckpointerType) -> None:
    run_ranks(_save_beside, 2, tmp_path, kind, fresh=True)
    for step in range(3):
        found = read_state(step_folder(tmp_path, step))
        assert torch.equal(found["w"], torch.full((10 + step // 2,), step))
        assert found["step"] == step
