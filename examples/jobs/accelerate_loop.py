"""A training loop of one's own with accelerate, which saves and loads everything that it has prepared."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--seedable", action="store_true")
    parser.add_argument("--set_epoch", action="store_true")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)

    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=options.seedable)
    )
    set_seed(0)
    data = TensorDataset(torch.randn(64, 16), torch.randint(0, 4, (64,)))
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(data, batch_size=8, shuffle=options.shuffle)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    step = 0
    saved = sorted(options.output_dir.glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    if saved:
        accelerator.load_state(str(saved[-1]))
        step = int(saved[-1].name.split("-")[1])

    for epoch in range(step // len(loader), options.epochs):
        passed = step - epoch * len(loader)
        batches = accelerator.skip_first_batches(loader, passed) if passed else loader
        if options.set_epoch:
            batches.set_epoch(epoch)
        for inputs, targets in batches:
            loss = nn.functional.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 5 == 0:
                accelerator.save_state(str(options.output_dir / f"step-{step}"))


if __name__ == "__main__":
    main()
