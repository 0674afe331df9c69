"""A model in whose forward its rank does not hear that it shall end."""

import signal
import time
from pathlib import Path

from torch import nn


class Deaf(nn.Linear):
    def __init__(self, sign: str) -> None:
        super().__init__(8, 8)
        self.sign = Path(sign)

    def forward(self, x):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        self.sign.touch()
        time.sleep(600)
        return super().forward(x)
