"""Data parallel training with DistributedDataParallel: rank 0 saves, every rank loads. Start it with torchrun."""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--save_every", type=int, default=3)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 16), torch.randint(0, 4, (64,)))
    sampler = DistributedSampler(data, shuffle=True, seed=7)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(rank)

    epoch, batches, step = 0, 0, 0
    last = options.output_dir / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, batches, step = state["epoch"], state["batches"], state["step"]
        torch.set_rng_state(state["rng"][rank])

    while epoch < options.epochs:
        sampler.set_epoch(epoch)
        # An iterator draws a seed when it is made; from the default stream it would be one more after a resume.
        order = torch.Generator().manual_seed(epoch)
        for index, (inputs, targets) in enumerate(DataLoader(data, batch_size=4, sampler=sampler, generator=order)):
            if index < batches:
                continue
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % options.save_every == 0:
                streams: list[torch.Tensor | None] = [None] * dist.get_world_size()
                dist.all_gather_object(streams, torch.get_rng_state())
                if rank == 0:
                    state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "rng": streams}
                    state |= {"epoch": epoch, "batches": index + 1, "step": step}
                    torch.save(state, last.with_suffix(".tmp"))
                    last.with_suffix(".tmp").replace(last)
                dist.barrier()
        epoch, batches = epoch + 1, 0
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
