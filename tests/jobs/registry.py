"""A model that is disturbed by a second one in its process: sound in a job that makes one."""

from typing import ClassVar

from torch import Tensor, nn


class Registry(nn.Module):
    """Each new model becomes the model of the process, and the others compute something else."""

    current: ClassVar["Registry | None"] = None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        Registry.current = self

    def forward(self, x: Tensor) -> Tensor:
        """Half as much where another model was made since."""
        return self.layer(x if Registry.current is self else x * 0.5)
