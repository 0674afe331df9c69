"""Training with DeepSpeed, whose ZeRO splits the optimizer among ranks. Start it with torchrun."""

import argparse
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save_every", type=int, default=3)
    options = parser.parse_args()
    deepspeed.init_distributed(dist_backend="gloo")

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 16), torch.randint(0, 4, (64,)))
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-2, "warmup_num_steps": 8}},
        "zero_optimization": {"stage": options.stage},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)

    step = 0
    if (options.output_dir / "latest").exists():
        _, saved = engine.load_checkpoint(str(options.output_dir))
        step = saved["step"]

    sampler = DistributedSampler(data, seed=7)
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    for epoch in range(step // len(loader), options.epochs):
        sampler.set_epoch(epoch)
        passed = step - epoch * len(loader)
        for index, (inputs, targets) in enumerate(loader):
            if index < passed:
                continue
            engine.backward(nn.functional.cross_entropy(engine(inputs), targets))
            engine.step()
            step += 1
            if step % options.save_every == 0:
                engine.save_checkpoint(str(options.output_dir), client_state={"step": step})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
