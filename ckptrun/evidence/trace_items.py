"""What the items of a trace are. Torch-free."""

from enum import StrEnum

__all__ = ["What"]


class What(StrEnum):
    """What an item of a trace is."""

    state = "state"
    """All that decides what comes next, in one."""
    stream = "random stream"
    weight = "weight"
    kept = "kept gradient"
    """A gradient that is there when nobody has computed one since."""
    moment = "moment"
    """What the optimizer keeps for a parameter."""
    option = "option"
    """Of a parameter group: the learning rate, ..."""
    scale = "loss scale"
    batch = "batch"
    input = "input"
    output = "output"
    gradient = "gradient"
    reduced = "reduced gradient"
    update = "update"
    """A weight after the optimizer's step."""
