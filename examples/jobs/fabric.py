"""A loop of one's own with Lightning Fabric, which saves in the middle of an epoch; on one process, or several."""

import argparse
from pathlib import Path

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--save_every", type=int, default=4)
    options = parser.parse_args()

    fabric = lightning.Fabric(accelerator="cpu", devices=options.devices, strategy="ddp")
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(96, 16), torch.randint(0, 4, (96,)))
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    batch_size = 12 // options.devices
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=batch_size, shuffle=options.shuffle))

    state = {"model": model, "optimizer": optimizer, "step": 0}
    saved = sorted(options.output_dir.glob("step-*.ckpt"), key=lambda path: int(path.stem.split("-")[1]))
    if saved:
        fabric.load(saved[-1], state)
    passed = state["step"] % len(loader)
    for _ in range(state["step"] // len(loader), 3):
        for index, (inputs, targets) in enumerate(loader):
            if index < passed:
                continue
            optimizer.zero_grad()
            fabric.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()
            state["step"] += 1
            if state["step"] % options.save_every == 0:
                fabric.save(options.output_dir / f"step-{state['step']}.ckpt", state)
        passed = 0


if __name__ == "__main__":
    main()
