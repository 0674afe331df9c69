"""Hugging Face Trainer that saves when it is told to end (SIGTERM): its just-in-time checkpoint."""

import argparse
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator, set_seed


class SlowTrainer(Trainer):
    """A Trainer whose model is not as tiny as this one."""

    forward_seconds = 0.0

    def compute_loss(self, *arguments: object, **options: object) -> torch.Tensor:
        """Return the loss, after a while."""
        loss = super().compute_loss(*arguments, **options)
        time.sleep(self.forward_seconds)
        return loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--read_seconds", type=float, default=0.0)
    parser.add_argument("--forward_seconds", type=float, default=0.0)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        time.sleep(options.read_seconds)
        return default_data_collator(examples)

    set_seed(0)
    tokens = [(torch.arange(16) + index) % 50 for index in range(48)]
    arguments = TrainingArguments(
        output_dir=options.output_dir,
        use_cpu=True,
        per_device_train_batch_size=4,
        num_train_epochs=1,
        learning_rate=1e-3,
        save_steps=5,
        enable_jit_checkpoint=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = SlowTrainer(
        model=GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2)),
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        data_collator=collate,
    )
    trainer.forward_seconds = options.forward_seconds
    trainer.train(resume_from_checkpoint=options.resume)


if __name__ == "__main__":
    main()
