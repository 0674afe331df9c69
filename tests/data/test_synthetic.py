import pytest
import torch

from ckptrun.data import RandomTensors, Shapes
from ckptrun.errors import ConfigError


def test_random_tensors_depend_on_index_and_seed_only():
    first = RandomTensors(samples=4, inputs=3, targets=2, seed=0)
    again = RandomTensors(samples=4, inputs=3, targets=2, seed=0)
    other = RandomTensors(samples=4, inputs=3, targets=2, seed=1)
    first[0]
    assert torch.equal(first[3][0], again[3][0])
    assert torch.equal(first[3][1], again[3][1])
    assert not torch.equal(first[3][0], first[2][0])
    assert not torch.equal(first[3][0], other[3][0])
    assert (first[3][0].shape, first[3][1].shape) == ((3,), (2,))


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_depend_on_index_and_seed_only(channels):
    shapes = Shapes(samples=8, size=16, seed=5, channels=channels)
    image, target = shapes[3]
    shapes[2]
    again, same_target = shapes[3]
    assert image.shape == (channels, 16, 16)
    assert torch.equal(image, again)
    assert target == same_target


def test_synthetic_samples_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    RandomTensors(samples=4, inputs=3, targets=2, seed=0)[1]
    Shapes(samples=4, size=8, seed=0)[1]
    assert torch.equal(before, torch.get_rng_state())


def test_all_four_shapes_occur_and_none_looks_like_another():
    shapes = Shapes(samples=400, size=16, seed=0)
    means = torch.zeros(4, 16, 16)
    counts = torch.zeros(4)
    for index in range(400):
        image, target = shapes[index]
        means[target] += image[0]
        counts[target] += 1
    assert (counts > 60).all()
    means /= counts[:, None, None]
    # Covered area tells disc and square from cross and ring, the middle tells cross from ring.
    assert means[0].mean() > means[3].mean()
    assert means[1].mean() > means[2].mean()
    assert means[2][7:9, 7:9].mean() > means[3][7:9, 7:9].mean()


def test_the_noise_differs_from_image_to_image():
    shapes = Shapes(samples=4, size=8, seed=0)
    assert not torch.equal(shapes[0][0], shapes[1][0])


def test_images_of_two_channels_are_refused():
    with pytest.raises(ConfigError, match="1 or 3 channels, not 2"):
        Shapes(samples=4, size=8, seed=0, channels=2)
