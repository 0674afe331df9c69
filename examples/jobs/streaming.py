"""Training on a streamed dataset of the library datasets, whose own state says where the stream goes on."""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--save_every", type=int, default=4)
    parser.add_argument("--shuffle_buffer", type=int)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    inputs = torch.randn(192, 16)
    rows = Dataset.from_dict({"inputs": inputs.tolist(), "targets": inputs.sum(1).tolist()})
    stream = rows.to_iterable_dataset(num_shards=4).with_format("torch")
    if options.shuffle_buffer is not None:
        stream = stream.shuffle(seed=0, buffer_size=options.shuffle_buffer)
    model = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    step = 0
    last = options.output_dir / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        stream.load_state_dict(state["stream"])
        step = state["step"]

    batches = iter(DataLoader(stream, batch_size=8))
    while step < options.steps:
        batch = next(batches)
        loss = nn.functional.mse_loss(model(batch["inputs"]).squeeze(1), batch["targets"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % options.save_every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state | {"stream": stream.state_dict()}, last.with_suffix(".tmp"))
            last.with_suffix(".tmp").replace(last)


if __name__ == "__main__":
    main()
