"""The mesh: one named torch DeviceMesh with the axes of the kind of parallelism. Must not know models."""

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ckptrun.config.parallelism import MeshShape, ParallelismKind

__all__ = ["REPLICATE", "SHARD", "TENSOR", "build_mesh", "data_axes", "data_parallel_rank"]

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"


def build_mesh(shape: MeshShape, device_type: str) -> DeviceMesh | None:
    """The mesh of ``shape``, outermost axis first; None for ``parallelism=none``.

    All ranks of the default process group call. ``ddp_tp`` gets a ``shard`` axis of 1 between the two it is asked for:
    ``fully_shard`` over it is what replicates a tensor-parallel model (see docs/parallelism.md).
    """
    degrees = shape.degrees
    if not degrees:
        return None
    if shape.kind is ParallelismKind.ddp_tp:
        degrees = {REPLICATE: shape.replicate, SHARD: 1, TENSOR: shape.tensor}
    return init_device_mesh(device_type, tuple(degrees.values()), mesh_dim_names=tuple(degrees))


def data_axes(mesh: DeviceMesh | None) -> tuple[str, ...]:
    """The axes over which ranks see different samples, outermost first."""
    names = () if mesh is None else mesh.mesh_dim_names or ()
    return tuple(axis for axis in (REPLICATE, SHARD) if axis in names)


def data_parallel_rank(mesh: DeviceMesh | None) -> int:
    """Which part of each global batch this process sees: 0 up to ``MeshShape.data_parallel``."""
    rank = 0
    for axis in data_axes(mesh):
        rank = rank * _mesh(mesh)[axis].size() + _mesh(mesh).get_local_rank(axis)
    return rank


def _mesh(mesh: DeviceMesh | None) -> DeviceMesh:
    if mesh is None:
        raise ValueError("There is no mesh.")
    return mesh
