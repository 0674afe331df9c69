"""The composition root of what trains: the only place that makes its objects from a config, and their state.

What saves and loads that state is made in ``run/job.py``, which has what it needs beside the config: groups, faults.
"""

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.utils.data import Dataset, IterableDataset

from ckptrun.checkpoint.policy import SaveInterval
from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.custom import Custom
from ckptrun.config.data import CustomDataConfig, PythonSourceConfig, RandomConfig, ShapesConfig, TextConfig
from ckptrun.config.model import CNNConfig, CustomModelConfig, GPTConfig, Loss, MLPConfig, MoEConfig
from ckptrun.config.optimizer import CustomOptimizerConfig, SGDConfig
from ckptrun.config.parallelism import MeshShape, ParallelismKind
from ckptrun.config.run import RunConfig
from ckptrun.config.schedule import CustomScheduleConfig
from ckptrun.console import say
from ckptrun.data import DataStream, PythonSource, RandomTensors, Shapes, Share, Text
from ckptrun.errors import ConfigError, InternalError
from ckptrun.model import CNN, GPT, MLP, ModelLayout, MoE, build_loss, layout_of, require_sizes, sparse_weights
from ckptrun.optimizer import OptimizerState, build_optimizer, parameter_groups
from ckptrun.parallelism import ParallelModel, Settings, build_mesh, data_parallel_rank, parallelize
from ckptrun.precision import LossScaler
from ckptrun.schedule import build_schedule
from ckptrun.state import RNG, ExponentialMovingAverage, Progress, preserved, seed_streams
from ckptrun.state.components import Component, TrainingState, as_template
from ckptrun.targets import call_target, load_target, require_callable_with
from ckptrun.trainer import LoopPlan, Training

__all__ = ["Builder", "Built"]


@dataclass(slots=True, kw_only=True)
class Built:
    """One set of objects, and how to let go of it."""

    training: Training
    _weights: Callable[[], Mapping[str, Tensor]] = field(default=dict)

    def restart_average(self) -> None:
        """Let the moving average start from the weights as they are now."""
        ema = self.training.ema
        if ema is not None:
            ema.load_state_dict({"updates": 0, "average": self._weights()})

    def close(self) -> None:
        """End loader processes."""
        self.training.stream.close()


class Builder:
    """Builds a run's objects, as often as asked: the reload check wants new ones. All ranks call everything.

    Args:
        config: The checked config.
        mesh_shape: Degrees of the mesh axes.
        device: Where this rank computes.
        rank: Global rank.
    """

    def __init__(self, config: RunConfig, *, mesh_shape: MeshShape, device: torch.device, rank: int) -> None:
        self._config = config
        self._shape = mesh_shape
        self._device = device
        self._rank = rank
        self._mesh: DeviceMesh | None = build_mesh(mesh_shape, device.type)
        train, checkpoint = config.train, config.checkpoint
        accumulate = train.accumulation(mesh_shape.data_parallel)
        self.share = Share(
            micro_batch=train.micro_batch,
            data_parallel=mesh_shape.data_parallel,
            data_rank=data_parallel_rank(self._mesh),
        )
        """Which part of each global micro-batch this rank takes."""
        self._plan = LoopPlan(
            steps=train.steps,
            accumulate=accumulate,
            clip_norm=train.clip_norm,
            samples_per_step=train.micro_batch * accumulate * mesh_shape.data_parallel,
            may_change_early=_has_code_of_the_user(config),
            save=None
            if checkpoint.mode is SaveMode.none
            else SaveInterval(interval_steps=checkpoint.interval_steps, last_step=train.steps),
        )

    def plan_with(self, *, further_saves: frozenset[int] = frozenset(), only_last: bool = False) -> LoopPlan:
        """The numbers of the loop.

        Args:
            further_saves: Steps that are saved beside those of the interval.
            only_last: Save the last step and no other.
        """
        save = self._plan.save
        if save is None:
            return self._plan
        interval = save.last_step if only_last else save.interval_steps
        return replace(self._plan, save=replace(save, interval_steps=interval, further_steps=further_saves))

    def plan_without_saves(self) -> LoopPlan:
        """The numbers of the loop, when nothing is to be saved."""
        return replace(self._plan, save=None)

    def build(self) -> Built:
        """Build everything anew: model, optimizer, schedule, data, scaler, EMA, and the state that names them.

        Initial values depend on ``train.seed`` alone, so they are the same on every rank and every mesh. The random
        streams of the process stay as they are.
        """
        config = self._config
        with preserved():
            seed_streams(config.train.seed)
            plain = self._model()
            self._require_sparse_fits(plain)
            layout = layout_of(config.model)
            matrices = _matrices(plain, layout)
            model = self._laid_out(plain, layout)
            seed_streams(config.train.seed)
            extra = {name: _call(spec, f"components.{name}") for name, spec in config.components.items()}
            stream = self._stream()
        optimizer = self._optimizer(model, matrices)
        schedule = self._schedule(optimizer)
        scaler = LossScaler(config.precision, device=self._device)
        weights = _weights_of(model)
        ema = None
        if config.train.ema_decay is not None:
            ema = ExponentialMovingAverage(weights, decay=config.train.ema_decay)
        progress = Progress()
        components: dict[str, Component] = {
            "model": as_template(model) if model.state_comes_and_goes else model,
            "optimizer": OptimizerState(
                optimizer, model.named_parameters, fsdp1_root=model.module if self._shape.kind.is_fsdp1 else None
            ),
            "schedule": as_template(schedule),
            "data": as_template(stream),
            "progress": progress,
            "rng": RNG(rank=self._rank),
            **{name: as_template(component) for name, component in extra.items()},
        }
        if scaler.enabled:
            components["scaler"] = scaler
        if ema is not None:
            components["ema"] = ema
        training = Training(
            model=model,
            loss=build_loss(config.model.loss),
            optimizer=optimizer,
            schedule=schedule,
            stream=stream,
            scaler=scaler,
            ema=ema,
            progress=progress,
            extra=extra,
            state=TrainingState(components),
            device=self._device,
        )
        return Built(training=training, _weights=weights)

    def _require_sparse_fits(self, model: nn.Module) -> None:
        """Refuse what torch cannot do with sparse gradients, which it would say in the middle of the first step."""
        names, config = sparse_weights(model), self._config.optimizer
        if not names:
            return
        what = f"'{names[0]}' is of an embedding with sparse=True, and has sparse gradients"
        kind = self._shape.kind
        if kind not in (ParallelismKind.none, ParallelismKind.ddp):
            raise ConfigError(
                f"{what}, which parallelism={kind} cannot reduce. Use parallelism=none, ddp or sparse=False."
            )
        if isinstance(config, SGDConfig):
            wrong = [key for key in ("weight_decay", "nesterov") if getattr(config, key)]
            if self._plan.save is not None and config.momentum:
                wrong.append("momentum")
            if wrong:
                raise ConfigError(
                    f"{what}: torch cannot add {wrong[0]} to them, or it makes sparse state, which cannot be saved. "
                    f"Use optimizer.{wrong[0]}={'false' if wrong[0] == 'nesterov' else '0'}, or sparse=False."
                )
        elif not isinstance(config, CustomOptimizerConfig):
            raise ConfigError(
                f"{what}, which this optimizer does not take. Use optimizer=sgd optimizer.momentum=0, optimizer=custom "
                "with one that does (torch.optim.Adagrad, torch.optim.SparseAdam), or sparse=False."
            )

    def _laid_out(self, model: nn.Module, layout: ModelLayout) -> ParallelModel:
        train = self._config.train
        for name, parameter in model.named_parameters():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in train.freeze):
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(f"train.freeze={list(train.freeze)} leaves no parameter to train.")
        settings = Settings(
            kind=self._shape.kind,
            device=self._device,
            precision=self._config.precision.kind,
            activation_checkpointing=train.activation_checkpointing,
            compile=train.compile,
        )
        return parallelize(model, layout, mesh=self._mesh, settings=settings)

    def _model(self) -> nn.Module:
        match self._config.model:
            case MoEConfig() as config:
                return MoE(config)
            case GPTConfig() as config:
                return GPT(config)
            case MLPConfig() as config:
                return MLP(config)
            case CNNConfig() as config:
                return CNN(config)
            case CustomModelConfig() as config:
                model = _construct(config, "model")
                if not isinstance(model, nn.Module):
                    raise ConfigError(
                        f"model._target_={config.target} made a {type(model).__name__}, not a torch.nn.Module."
                    )
                batch = (None, None) if config.loss is Loss.model else (None,)
                wanted = "(input, target), because model.loss=model" if config.loss is Loss.model else "(input)"
                require_sizes(model, target=config.target)
                require_callable_with(model.forward, *batch, key="model", why=f"is called as forward{wanted}")
                return model
            case other:
                raise InternalError(f"No model for {type(other).__name__}.")

    def _optimizer(self, model: ParallelModel, matrices: frozenset[str]) -> Optimizer:
        config = self._config.optimizer
        if isinstance(config, CustomOptimizerConfig):
            groups = parameter_groups(model.named_parameters, decayed=model.decayed, weight_decay=config.weight_decay)
            step = getattr(load_target(config.target, key="optimizer._target_"), "step", None)
            if step is not None:
                require_callable_with(step, None, key="optimizer", why="is called without a closure")
            optimizer = call_target(config.target, groups, key="optimizer", lr=config.lr, **config.args)
            if not isinstance(optimizer, Optimizer):
                raise ConfigError(
                    f"optimizer._target_={config.target} made a {type(optimizer).__name__}, no torch.optim.Optimizer."
                )
            return optimizer
        return build_optimizer(config, model.named_parameters, decayed=model.decayed, matrices=matrices)

    def _schedule(self, optimizer: Optimizer) -> Any:
        config = self._config.schedule
        if isinstance(config, CustomScheduleConfig):
            schedule = call_target(config.target, optimizer, key="schedule", **config.args)
            require_callable_with(schedule.step, key="schedule", why="is called once after each step")
            return schedule
        return build_schedule(config, optimizer, steps=self._config.train.steps)

    def _stream(self) -> DataStream:
        config, train = self._config.data, self._config.train
        return DataStream(
            self._dataset(),
            self.share,
            seed=train.seed,
            shuffle=config.shuffle,
            num_workers=config.num_workers,
        )

    def _dataset(self) -> Dataset[Any]:
        model, seed = self._config.model, self._config.train.seed
        context = model.context if isinstance(model, GPTConfig | CustomModelConfig) else 0
        match self._config.data:
            case PythonSourceConfig(max_bytes=max_bytes):
                return PythonSource(context=context, max_bytes=max_bytes)
            case TextConfig(files=files, max_bytes=limit):
                return Text(files, context=context, max_bytes=limit)
            case RandomConfig(samples=samples):
                features = model.features if isinstance(model, MLPConfig) else [8, 8]
                return RandomTensors(samples=samples, inputs=features[0], targets=features[-1], seed=seed)
            case ShapesConfig(samples=samples, size=size):
                return Shapes(samples=samples, size=size, seed=seed)
            case CustomDataConfig() as config:
                return self._custom_dataset(config)
            case other:
                raise InternalError(f"No dataset for {type(other).__name__}.")

    def _custom_dataset(self, config: CustomDataConfig) -> Dataset[Any]:
        place = {"rank": self.share.data_rank, "world_size": self._shape.data_parallel}
        taken = inspect.signature(load_target(config.target, key="data._target_")).parameters
        offered = {name: value for name, value in place.items() if name in taken and name not in config.args}
        dataset = call_target(config.target, key="data", **offered, **config.args)
        if isinstance(dataset, IterableDataset) and not offered and self._shape.data_parallel > 1 and self._rank == 0:
            say(
                f"data._target_={config.target} is iterable and takes neither rank nor world_size: unless it splits "
                f"itself, all {self._shape.data_parallel} data-parallel ranks train on the same samples."
            )
        if not isinstance(dataset, Dataset | IterableDataset) and not hasattr(dataset, "__getitem__"):
            raise ConfigError(f"data._target_={config.target} made a {type(dataset).__name__}, not a torch dataset.")
        return dataset  # type: ignore[no-any-return]  # anything with __getitem__ and __len__ will do


def _has_code_of_the_user(config: RunConfig) -> bool:
    """Whether anything but ckptrun's own parts and torch's optimizers runs in a step.

    That may change the state at any moment: ``Embedding(max_norm=)`` and clamps in forward, hooks in backward.
    """
    groups = (config.model, config.data, config.optimizer, config.schedule)
    return bool(config.components) or any(isinstance(group, Custom) for group in groups)


def _weights_of(model: ParallelModel) -> Callable[[], Mapping[str, Tensor]]:
    """The parameters by name, as the state names them; buffers are not averaged."""
    names = set(model.named_parameters)

    def weights() -> Mapping[str, Tensor]:
        return {name: value for name, value in model.state_dict().items() if name in names}

    return weights


def _matrices(model: nn.Module, layout: ModelLayout) -> frozenset[str]:
    """Names of the weight matrices of hidden layers: 2-dim, in a block (anywhere if there are none), no embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
        and id(parameter) not in embeddings
        and (not layout.blocks or any(fnmatch.fnmatchcase(name, f"{pattern}.*") for pattern in layout.blocks))
    )


def _construct(config: Custom, key: str) -> Any:
    return call_target(config.target, key=key, **config.args)


def _call(spec: Mapping[str, Any], key: str) -> Any:
    component = call_target(spec["_target_"], key=key, **spec.get("args", {}))
    if not isinstance(component, Component):
        raise ConfigError(
            f"{key}._target_={spec['_target_']} made a {type(component).__name__}, which has no state_dict or no "
            "load_state_dict."
        )
    return component
