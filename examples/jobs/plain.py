"""A training script as people write them: one process, one file per checkpoint, resumed from the newest one."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def newest(folder: Path) -> Path | None:
    found = sorted(folder.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.split("-")[1]))
    return found[-1] if found else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--save_every", type=int, default=4)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 16), torch.randint(0, 4, (64,)))
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=24)

    epoch, batches, step = 0, 0, 0
    checkpoint = newest(options.output_dir)
    if checkpoint is not None:
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        epoch, batches, step = state["epoch"], state["batches"], state["step"]
        torch.set_rng_state(state["rng"])

    while epoch < options.epochs:
        order = torch.Generator().manual_seed(epoch)
        for index, (inputs, targets) in enumerate(DataLoader(data, batch_size=8, shuffle=True, generator=order)):
            if index < batches:
                continue
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % options.save_every == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
                state |= {"schedule": schedule.state_dict(), "epoch": epoch, "batches": index + 1, "step": step}
                torch.save(state, options.output_dir / f"checkpoint-{step}.tmp")
                (options.output_dir / f"checkpoint-{step}.tmp").rename(options.output_dir / f"checkpoint-{step}.pt")
        epoch, batches = epoch + 1, 0
    print(f"done after {step} steps")


if __name__ == "__main__":
    main()
