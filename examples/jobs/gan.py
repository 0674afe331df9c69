"""A GAN: two models, two optimizers that take turns, one checkpoint."""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def network(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 8).cumsum(1))
    generator, discriminator = network(4, 16, 8), network(8, 16, 1)
    for_generator = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for_discriminator = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    parts = {"g": generator, "d": discriminator, "og": for_generator, "od": for_discriminator}

    epoch = 0
    file = options.output_dir / "gan.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        epoch = state["epoch"]
        torch.set_rng_state(state["rng"])

    binary = nn.functional.binary_cross_entropy_with_logits
    while epoch < options.epochs:
        for (real,) in DataLoader(data, batch_size=16, shuffle=True):
            fake = generator(torch.randn(len(real), 4))
            for_discriminator.zero_grad()
            judged_real, judged_fake = discriminator(real), discriminator(fake.detach())
            loss = binary(judged_real, torch.ones_like(judged_real)) + binary(
                judged_fake, torch.zeros_like(judged_fake)
            )
            loss.backward()
            for_discriminator.step()
            for_generator.zero_grad()
            judged = discriminator(fake)
            binary(judged, torch.ones_like(judged)).backward()
            for_generator.step()
        epoch += 1
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"epoch": epoch, "rng": torch.get_rng_state()}, file)


if __name__ == "__main__":
    main()
