"""What a path on the command line stands for: a checkpoint, or a folder of checkpoints. Must not import torch."""

from ckptrun.checkpoint.backend import Location, locate
from ckptrun.checkpoint.commit import is_committed, list_committed, list_in_flight, list_leftovers
from ckptrun.checkpoint.layout import step_name
from ckptrun.errors import CheckpointNotFoundError, ConfigError
from ckptrun.tools.text import joined

__all__ = ["checkpoints_in", "place_of", "root_at"]

_CHECKPOINTS = "checkpoints"
_SHOWN = 8


def place_of(path: str) -> Location:
    """Return where ``path`` points.

    Raises:
        ConfigError: It is a URL that nothing here can open.
    """
    try:
        return locate(path)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{path} cannot be opened: {error}.") from error


def root_at(place: Location) -> Location | None:
    """Return the folder of checkpoints that ``place`` is or, being a run, has; None when it is a checkpoint itself.

    Raises:
        CheckpointNotFoundError: It is neither; says what is there.
    """
    if is_committed(place):
        return None
    for root in (place, place.child(_CHECKPOINTS)):
        if list_committed(root) or list_leftovers(root) or list_in_flight(root):
            return root
    names = place.backend.list_names(place.path)
    what = f"there are: {joined(names, _SHOWN)}" if names else "it does not exist, is empty, or is no folder"
    elsewhere = " Where a run keeps its checkpoints stands in checkpoint.path of its config.yaml."
    raise CheckpointNotFoundError(
        f"{place} is no checkpoint (it has no manifest.json), no run and no folder of checkpoints; {what}."
        f"{elsewhere if 'config.yaml' in names else ''}",
        folder=str(place),
    )


def checkpoints_in(root: Location) -> list[Location]:
    """Return the committed checkpoints, oldest first."""
    return [root.child(step_name(step)) for step in list_committed(root)]
