"""A job on several ranks, each of which saves where its random stream stands; rank 0 then marks the save as whole."""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

SAVE_EVERY = 2
STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--waits", action="store_true", help="rank 0 marks it once all ranks have saved")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    marks = sorted(options.output_dir.glob("step-*/whole"))
    step = 0
    if marks:
        folder = marks[-1].parent
        state = torch.load(folder / "model.pt")
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        if (folder / f"random-{rank}.pt").exists():
            torch.set_rng_state(torch.load(folder / f"random-{rank}.pt"))
    while step < STEPS:
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        step += 1
        if step % SAVE_EVERY == 0:
            folder = options.output_dir / f"step-{step}"
            folder.mkdir(parents=True, exist_ok=True)
            put(folder / f"random-{rank}.pt", torch.get_rng_state())
            if options.waits:
                dist.barrier()
            if rank == 0:
                state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                put(folder / "model.pt", state)
                (folder / "whole").touch()
            dist.barrier()
    dist.destroy_process_group()


def put(file: Path, state: object) -> None:
    """Under another name first."""
    draft = file.with_suffix(".draft")
    torch.save(state, draft)
    os.replace(draft, file)  # noqa: PTH105


if __name__ == "__main__":
    main()
