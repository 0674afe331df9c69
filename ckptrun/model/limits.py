"""What torch allows in a model and a run cannot take as it is: told before anything is laid out. Knows no meshes."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ckptrun.errors import ConfigError

__all__ = ["require_sizes", "sparse_weights"]

_SHOWN = 5


def require_sizes(model: nn.Module, *, target: str) -> None:
    """Check that every parameter and buffer has its size; a lazy module gets it from the first batch.

    Raises:
        ConfigError: Names the modules.
    """
    lazy = [
        (name or "model", module)
        for name, module in model.named_modules()
        if any(is_lazy(value) for value in _own(module))
    ]
    if lazy:
        shown = ", ".join(f"'{name}' ({type(module).__name__})" for name, module in lazy[:_SHOWN])
        more = f" and {len(lazy) - _SHOWN} more" if len(lazy) > _SHOWN else ""
        raise ConfigError(
            f"model._target_={target} has modules that learn their sizes from the first batch: {shown}{more}. "
            "Parameters are laid out and given to the optimizer before there is one. Use the modules that are told "
            "their sizes (Linear for LazyLinear), or run one batch through the model at the end of its __init__."
        )


def _own(module: nn.Module) -> Iterator[Tensor]:
    for value in (*module._parameters.values(), *module._buffers.values()):
        if value is not None:
            yield value


def sparse_weights(model: nn.Module) -> list[str]:
    """Names of the weights whose gradients are sparse tensors: those of embeddings made with ``sparse=True``."""
    return [
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad
    ]
