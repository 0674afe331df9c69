"""A job of a few small steps that saves in one of several ways; which crash states they leave is known."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY = 2
STEPS = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--how", choices=["synced", "in_place", "two_files", "pointer"], required=True)
    options = parser.parse_args()
    folder = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loaded = load(folder, options.how)
    step = 0
    if loaded is not None:
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        step = loaded["step"]
    while step < STEPS:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        step += 1
        if step % SAVE_EVERY == 0:
            save(folder, options.how, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step})


def save(folder: Path, how: str, state: dict[str, Any]) -> None:
    step = state["step"]
    if how == "in_place":
        torch.save(state, folder / "checkpoint.pt")
    elif how == "two_files":
        put(folder / "model.pt", {"model": state["model"], "step": step})
        put(folder / "optimizer.pt", {"optimizer": state["optimizer"]})
    else:
        put(folder / f"step-{step}.pt", state)
        if how == "pointer":
            (folder / "latest.tmp").write_text(str(step))
            (folder / "latest.tmp").replace(folder / "latest")
        else:
            (folder / f"step-{step - 2 * SAVE_EVERY}.pt").unlink(missing_ok=True)


def put(file: Path, state: dict[str, Any]) -> None:
    """Under another name, synced, renamed, the folder synced."""
    draft = file.with_suffix(".draft")
    with draft.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
    descriptor = os.open(file.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def load(folder: Path, how: str) -> dict[str, Any] | None:
    if how == "in_place":
        return torch.load(folder / "checkpoint.pt") if (folder / "checkpoint.pt").exists() else None
    if how == "two_files":
        if not (folder / "optimizer.pt").exists():
            return None
        return torch.load(folder / "model.pt") | torch.load(folder / "optimizer.pt")
    if how == "pointer":
        steps = [(folder / "latest").read_text()] if (folder / "latest").exists() else []
    else:
        steps = sorted((file.stem.partition("-")[2] for file in folder.glob("step-*.pt")), key=int)
    return torch.load(folder / f"step-{steps[-1]}.pt") if steps else None


if __name__ == "__main__":
    main()
