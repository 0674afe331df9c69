"""torchtitan's tiny Llama 3 with FSDP2, on CPU: nothing is downloaded. Start it with torchrun."""

import argparse
import tempfile
from pathlib import Path

import torch
import torchtitan_cpu  # noqa: F401  # before anything of torchtitan
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.tools.logging import init_logger

WORDS = [f"w{number}" for number in range(100)]


def texts(_: str) -> Dataset:
    lines = [" ".join(WORDS[(start * step) % 100] for step in range(200)) for start in range(64)]
    return Dataset.from_dict({"text": lines})


def tokenizer_folder() -> str:
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    folder = Path(tempfile.mkdtemp())
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    options = parser.parse_args()
    init_logger()
    DATASETS["words"] = DatasetConfig(path="words", loader=texts, sample_processor=lambda sample: sample["text"])
    config = llama3_debugmodel()
    config.dump_folder = options.output_dir
    config.hf_assets_path = tokenizer_folder()
    config.dataloader.dataset = "words"
    config.training.steps, config.training.local_batch_size, config.training.seq_len = 12, 2, 32
    config.training.disable_cuda_graphs = True
    config.checkpoint.enable, config.checkpoint.interval = True, 3
    config.validator.enable = False
    config.parallelism.spmd_backend = "partial_dtensor"
    config.debug.seed, config.debug.deterministic = 0, True
    trainer = config.build()
    trainer.train()
    trainer.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
