"""Group ``parallelism``: the mesh and how the model is laid out on it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from ckptrun.errors import ConfigError

__all__ = ["AUTO", "AXES", "MeshShape", "ParallelismConfig", "ParallelismKind", "resolve_mesh", "wanted_ranks"]

AUTO = "auto"
AXES = ("replicate", "shard", "tensor")
_AUTO_RANKS = 4


class ParallelismKind(StrEnum):
    """How a model is spread over ranks; the names are those of the choices."""

    none = "none"
    ddp = "ddp"
    fsdp = "fsdp"
    hsdp = "hsdp"
    tp = "tp"
    fsdp_tp = "fsdp_tp"
    hsdp_tp = "hsdp_tp"
    ddp_tp = "ddp_tp"
    fsdp1 = "fsdp1"
    hsdp1 = "hsdp1"
    fsdp1_tp = "fsdp1_tp"

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes of this kind, outermost first."""
        return _AXES_OF[self]

    @property
    def is_fsdp1(self) -> bool:
        """Whether this is ``FullyShardedDataParallel`` rather than ``fully_shard``."""
        match self:
            case ParallelismKind.fsdp1 | ParallelismKind.hsdp1 | ParallelismKind.fsdp1_tp:
                return True
            case ParallelismKind.fsdp | ParallelismKind.hsdp | ParallelismKind.fsdp_tp | ParallelismKind.hsdp_tp:
                return False
            case ParallelismKind.none | ParallelismKind.ddp | ParallelismKind.tp | ParallelismKind.ddp_tp:
                return False
            case _:
                assert_never(self)


_AXES_OF: Mapping[ParallelismKind, tuple[str, ...]] = {
    ParallelismKind.none: (),
    ParallelismKind.ddp: ("replicate",),
    ParallelismKind.fsdp: ("shard",),
    ParallelismKind.hsdp: ("replicate", "shard"),
    ParallelismKind.tp: ("tensor",),
    ParallelismKind.fsdp_tp: ("shard", "tensor"),
    ParallelismKind.hsdp_tp: ("replicate", "shard", "tensor"),
    ParallelismKind.ddp_tp: ("replicate", "tensor"),
    ParallelismKind.fsdp1: ("shard",),
    ParallelismKind.hsdp1: ("replicate", "shard"),
    ParallelismKind.fsdp1_tp: ("shard", "tensor"),
}


@dataclass(kw_only=True, slots=True)
class ParallelismConfig:
    """The kind of parallelism and the degree of each mesh axis."""

    kind: ParallelismKind = ParallelismKind.none
    """Set by the choice: ``parallelism=fsdp_tp``."""
    replicate: int | str = 1
    """Number of replicas (DDP, HSDP), or ``auto``: what the world size leaves."""
    shard: int | str = 1
    """Number of ranks that share one copy of parameters, gradients and optimizer state, or ``auto``."""
    tensor: int | str = 1
    """Number of ranks that split each layer, or ``auto``."""

    def __post_init__(self) -> None:
        degrees = {axis: getattr(self, axis) for axis in AXES}
        for axis, degree in degrees.items():
            if degree != AUTO and (not isinstance(degree, int) or degree < 1):
                raise ConfigError(f"parallelism.{axis} must be a positive number or 'auto', got {degree!r}.")
            if axis not in self.kind.axes and degree != 1:
                kinds = ", ".join(kind for kind in ParallelismKind if axis in kind.axes)
                raise ConfigError(
                    f"parallelism.{axis}={degree} has no meaning for parallelism={self.kind}; "
                    f"leave it at 1 or choose one of: {kinds}."
                )
        autos = [axis for axis, degree in degrees.items() if degree == AUTO]
        if len(autos) > 1:
            raise ConfigError(
                f"Only one of parallelism.{' and parallelism.'.join(autos)} may be 'auto'; give a number."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshShape:
    """Degrees of all axes, every one a number."""

    kind: ParallelismKind
    replicate: int
    shard: int
    tensor: int

    @property
    def degrees(self) -> dict[str, int]:
        """Axis name -> degree, for the axes of this kind, outermost first."""
        return {axis: int(getattr(self, axis)) for axis in self.kind.axes}

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return math.prod(self.degrees.values())

    @property
    def data_parallel(self) -> int:
        """Number of ranks that see different samples."""
        return self.replicate * self.shard


def _fixed(config: ParallelismConfig) -> tuple[int, str | None]:
    """The product of the given degrees, and the axis that is ``auto``, if any."""
    given = [getattr(config, axis) for axis in config.kind.axes]
    auto = next((axis for axis in config.kind.axes if getattr(config, axis) == AUTO), None)
    return math.prod(degree for degree in given if degree != AUTO), auto


def wanted_ranks(config: ParallelismConfig) -> int:
    """How many ranks to start when ``launch.nproc`` is unset: ``auto`` brings the mesh to 4, and is at least 2."""
    fixed, auto = _fixed(config)
    return fixed if auto is None else fixed * max(2, math.ceil(_AUTO_RANKS / fixed))


def resolve_mesh(config: ParallelismConfig, world_size: int) -> MeshShape:
    """Give every axis its degree on ``world_size`` ranks.

    Raises:
        ConfigError: The degrees do not multiply to the world size; names the keys and both numbers.
    """
    fixed, auto = _fixed(config)
    degrees = {axis: getattr(config, axis) for axis in AXES}
    if auto is not None and world_size % fixed == 0:
        degrees[auto] = world_size // fixed
    elif fixed != world_size or auto is not None:
        product = " * ".join(f"parallelism.{axis}={getattr(config, axis)}" for axis in config.kind.axes)
        needed = f"{product} = {fixed}{' * auto' if auto else ''} ranks" if product else "1 rank"
        raise ConfigError(
            f"The mesh of parallelism={config.kind} needs {needed}, "
            f"but {world_size} {'was' if world_size == 1 else 'were'} started. "
            f"Set launch.nproc={wanted_ranks(config)} (or torchrun --nproc-per-node {wanted_ranks(config)}), "
            "or change the degrees."
        )
    return MeshShape(kind=config.kind, **degrees)
