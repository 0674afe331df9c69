"""Hugging Face Trainer on a tiny GPT-2 that is built from a config: nothing is downloaded."""

import argparse

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Sequences that count upwards; with ``noise``, some tokens are replaced at random each time they are read."""

    def __init__(self, *, noise: bool) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(16) + index) % 50
        if self.noise:
            tokens = torch.where(torch.rand(16) < 0.1, torch.randint(0, 50, (16,)), tokens)
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    arguments = TrainingArguments(
        output_dir=options.output_dir,
        use_cpu=True,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-3,
        save_steps=5,
        save_total_limit=3,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Counting(noise=options.noise))
    trainer.train(resume_from_checkpoint=options.resume)


if __name__ == "__main__":
    main()
