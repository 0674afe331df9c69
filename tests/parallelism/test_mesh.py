import pytest

from ckptrun.parallelism import build_mesh, data_parallel_rank
from tests.parallelism.training import KINDS, mesh_shape
from tests.support.run_ranks import run_ranks


def test_none_has_no_mesh_and_is_rank_zero():
    assert build_mesh(mesh_shape("none", 1), "cpu") is None
    assert data_parallel_rank(None) == 0


def _places(kinds: tuple[str, ...]) -> dict[str, tuple]:
    places = {}
    for kind in kinds:
        mesh = build_mesh(mesh_shape(kind, 4), "cpu")
        names = mesh.mesh_dim_names
        tensor_rank = mesh.get_local_rank("tensor") if "tensor" in names else 0
        places[kind] = (names, data_parallel_rank(mesh), tensor_rank)
    return places


@pytest.fixture(scope="module")
def places():
    return run_ranks(_places, 4, KINDS[1:])


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [kind for kind in KINDS[1:] if kind != "ddp_tp"])
def test_mesh_has_the_axes_of_its_kind_outermost_first(places, kind):
    assert places[0][kind][0] == mesh_shape(kind, 4).kind.axes


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_rank_has_a_place_of_its_own(places, kind):
    shape = mesh_shape(kind, 4)
    found = sorted(rank[kind][1:] for rank in places)
    assert found == [(data, tensor) for data in range(shape.data_parallel) for tensor in range(shape.tensor)]
