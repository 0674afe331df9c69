"""Group ``parallelism``: the mesh, and how a model is laid out on it. Must not know which models there are."""

from ckptrun.parallelism.assemble import Layout, Settings, parallelize
from ckptrun.parallelism.mesh import build_mesh, data_parallel_rank
from ckptrun.parallelism.naming import clean_name
from ckptrun.parallelism.parallel_model import ParallelModel

__all__ = [
    "Layout",
    "ParallelModel",
    "Settings",
    "build_mesh",
    "clean_name",
    "data_parallel_rank",
    "parallelize",
]
