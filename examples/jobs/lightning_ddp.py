"""A Lightning module that is fitted from a checkpoint if there is one; on one process, or on several with DDP."""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    """Two layers, with dropout or without."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        return nn.functional.cross_entropy(self.layers(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on everything."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--every_n_steps", type=int)
    options = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(32, 16), torch.randint(0, 4, (32,)))
    last = options.output_dir / "last.ckpt"
    every = options.every_n_steps
    saving = ModelCheckpoint(
        options.output_dir, save_last=True, every_n_train_steps=every, save_on_train_epoch_end=every is None
    )
    trainer = lightning.Trainer(
        default_root_dir=options.output_dir,
        accelerator="cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        max_epochs=4,
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(options.dropout), DataLoader(data, batch_size=8), ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    main()
