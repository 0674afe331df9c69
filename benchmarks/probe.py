"""What the probe of ``ckptrun prove`` costs: steps of a transformer with it and without it, in turns.

Each turn is a process of its own; the median step of each is compared with that of the turn beside it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ckptrun.probe import PLAN_VARIABLE, site_folder

_JOB = """
import statistics, sys, time
import torch
from torch import nn

torch.manual_seed(0)
width, layers, batch, length = map(int, sys.argv[1:5])
layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, dropout=0.0, batch_first=True)
blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
model = nn.Sequential(nn.Embedding(512, width), blocks, nn.Linear(width, 512))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
tokens = torch.randint(0, 512, (batch, length))
seconds = []
for step in range(int(sys.argv[5])):
    began = time.perf_counter()
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    seconds.append(time.perf_counter() - began)
print(sum(p.numel() for p in model.parameters()), statistics.median(seconds[2:]))
"""
_SIZES = ((384, 5, 4, 128), (384, 5, 16, 128))
_STEPS = 12
_TURNS = 5


def main() -> None:
    """Print a line per size of batch."""
    print(f"{'parameters':>12} {'tokens':>8} {'alone':>10} {'heard':>10} {'more':>8}")
    for size in _SIZES:
        alone, heard, ratios = [], [], []
        for _ in range(_TURNS):
            count, one = _median_step(size, with_probe=False)
            _, other = _median_step(size, with_probe=True)
            alone.append(one)
            heard.append(other)
            ratios.append(other / one - 1)
        median = statistics.median
        print(
            f"{count:>12,} {size[2] * size[3]:>8} {median(alone) * 1e3:>7.0f} ms {median(heard) * 1e3:>7.0f} ms "
            f"{median(ratios):>8.1%}"
        )


def _median_step(size: tuple[int, ...], *, with_probe: bool) -> tuple[int, float]:
    """How many parameters there are, and the seconds of a step."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        if with_probe:
            plan = Path(folder, "plan.json")
            records = Path(folder, "records")
            records.mkdir()
            facts = {"records": str(records), "output": folder, "faults": []}
            plan.write_text(json.dumps({**facts, "first_step": 0, "digest_every_steps": 1, "deterministic": False}))
            environment |= {PLAN_VARIABLE: str(plan), "PYTHONPATH": str(site_folder())}
        command = [sys.executable, "-c", _JOB, *map(str, size), str(_STEPS)]
        said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    return int(said[0]), float(said[1])


if __name__ == "__main__":
    main()
