"""Sharded training with FSDP2, saved in the background by torch_checkpointing. Start it with torchrun."""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch_checkpointing import CheckpointManager
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig


def newest(folder: Path) -> Path | None:
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(8, 16, generator=generator)
    return inputs, inputs.cumsum(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save_every", type=int, default=3)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 16))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # Each rank gets back what it saved: on another number of ranks a resharder is needed, which needs an accelerator.
    storage = LocalFileSystemStorageConfig(use_direct_io=False)
    manager = CheckpointManager(CheckpointManager.Config(storage_config=storage))

    step = 0
    checkpoint = newest(options.output_dir)
    if checkpoint is not None:
        weights, moments = get_state_dict(model, optimizer)
        state = manager.load(str(checkpoint), into={"model": weights, "optimizer": moments, "step": 0})
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        step = state["step"]

    saved = None
    while step < options.steps:
        inputs, targets = batch(step, rank)
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        with manager.lock():
            optimizer.step()
        step += 1
        if step % options.save_every == 0:
            if saved is not None:
                saved.result()
            weights, moments = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments, "step": step}
            saved = manager.save(str(options.output_dir / f"step-{step}"), state)
    manager.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
