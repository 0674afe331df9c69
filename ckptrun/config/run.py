"""The whole config of a run, and the one door from Hydra's DictConfig to it. Torch-free."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ckptrun.config.checkpoint import CheckpointConfig
from ckptrun.config.crash import CrashConfig, CrashKind
from ckptrun.config.custom import Custom
from ckptrun.config.data import CustomDataConfig, DataConfig, PythonSourceConfig, RandomConfig, ShapesConfig, TextConfig
from ckptrun.config.fault import FaultConfig, FaultKind
from ckptrun.config.job import JobConfig, JobKind
from ckptrun.config.launch import LaunchConfig
from ckptrun.config.model import CNNConfig, CustomModelConfig, GPTConfig, MLPConfig, ModelConfig
from ckptrun.config.optimizer import AdafactorConfig, MuonConfig, OptimizerConfig
from ckptrun.config.parallelism import MeshShape, ParallelismConfig, ParallelismKind, resolve_mesh, wanted_ranks
from ckptrun.config.precision import PrecisionConfig, PrecisionKind
from ckptrun.config.proof import ProofConfig
from ckptrun.config.schedule import ScheduleConfig
from ckptrun.config.sweep_cells import CellsConfig
from ckptrun.config.train import TrainConfig
from ckptrun.errors import ConfigError, InternalError

__all__ = [
    "Device",
    "RunConfig",
    "RunSection",
    "check",
    "check_world",
    "default_run_name",
    "folder_name",
    "from_hydra",
    "telling",
]


class Device(StrEnum):
    """Where ranks compute."""

    auto = "auto"
    """CUDA where the machine has it, else CPU."""
    cpu = "cpu"
    cuda = "cuda"


@dataclass(kw_only=True, slots=True)
class RunSection:
    """What the run is called and where it lives."""

    name: str | None = None
    """Name of the run; unset: made from the overrides on the command line. Never from the clock."""
    dir: str | None = None
    """The run folder; unset: ``outputs/<experiment>/<run.name>``."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run."""

    run: RunSection = field(default_factory=RunSection)
    device: Device = Device.auto
    """``auto``, ``cpu`` or ``cuda``."""
    model: ModelConfig = field(default_factory=ModelConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    fault: FaultConfig = field(default_factory=FaultConfig)
    proof: ProofConfig = field(default_factory=ProofConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    job: JobConfig = field(default_factory=JobConfig)
    crash: CrashConfig = field(default_factory=CrashConfig)
    sweep: CellsConfig = field(default_factory=CellsConfig)
    components: dict[str, Any] = field(default_factory=dict)
    """Components of the user's own: name -> ``{_target_: ..., args: {...}}``; objects with ``state_dict`` and
    ``load_state_dict``, told of each step if they have ``on_step(step=, loss=)``."""

    @property
    def run_dir(self) -> Path:
        """The run folder, absolute."""
        return Path(str(self.run.dir)).expanduser().resolve()

    @property
    def checkpoint_root(self) -> str:
        """Where the checkpoints of this run lie: a local path or a URL."""
        return self.checkpoint.path or str(self.run_dir / "checkpoints")

    @property
    def ranks(self) -> int:
        """How many ranks ckptrun starts by itself."""
        return self.launch.nproc or wanted_ranks(self.parallelism)


COMPONENTS = ("model", "optimizer", "schedule", "data", "scaler", "ema", "progress", "rng")

# What a run may change between two starts in one folder without becoming another run.
_NOT_IN_NAME = (
    "run.",
    "launch.",
    "proof.",
    "sweep.",
    "hydra.",
    "hydra/",
    "train.steps",
    "train.log_interval_steps",
    "checkpoint.",
    "job=command",
    "job.timeout_seconds",
)
_COMMAND, _RESUME = "job.command=", "job.resume="
_LONGEST_NAME = 100


def default_run_name(overrides: Sequence[str]) -> str:
    """Name a run after the overrides that make it what it is, so that the same command finds the same folder.

    Order does not count. What a user may change between two starts of one run (its length, its ranks' timeout,
    where and how often it saves, what is checked) is left out.
    """
    return folder_name(telling(overrides)) or "default"


def telling(overrides: Iterable[str]) -> list[str]:
    """The overrides without those that a user may change between two starts of one run; a command by its program."""
    return [
        _short_command(text) if text.startswith((_COMMAND, _RESUME)) else text
        for text in overrides
        if not text.lstrip("+~").startswith(_NOT_IN_NAME)
    ]


def _short_command(override: str) -> str:
    """``job.command=...`` by the first script or program that it names, and a mark of all of it; a resume by a mark."""
    mark = hashlib.sha256(override.encode()).hexdigest()[:8]
    if override.startswith(_RESUME):
        return f"job.resume={mark}"
    words = re.split(r"[\s,'\"\[\]]+", override.removeprefix(_COMMAND))
    script = next((Path(word).stem for word in words if word.endswith(".py")), None)
    name = script or next((Path(word).name for word in words if word), "command")
    return f"{name}-{mark}"


def folder_name(overrides: Iterable[str], *, distinct: bool = False) -> str:
    """Make a name for a folder of ``overrides``, in any order; empty when there are none.

    Args:
        overrides: As they are typed.
        distinct: Whether overrides that differ only in characters which no name may have get different names too.
    """
    text = ",".join(sorted(override.lstrip("+~") for override in overrides))
    name = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", text)
    if len(name) <= _LONGEST_NAME and not (distinct and name != text):
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def from_hydra(composed: DictConfig, *, overrides: Sequence[str], experiment: str | None) -> RunConfig:
    """Turn Hydra's config into a checked RunConfig; from here on no DictConfig exists.

    What OmegaConf raises passes unchanged: :func:`ckptrun.config.compose.checked` translates it.

    Raises:
        ConfigError: A value is out of range or contradicts another; names the key.
    """
    config = OmegaConf.to_object(composed)
    if not isinstance(config, RunConfig):
        raise ConfigError(f"The config is a {type(config).__name__}, not a RunConfig; keep 'base_run' in the defaults.")
    config.run.name = config.run.name or default_run_name(overrides)
    config.run.dir = config.run.dir or f"outputs/{experiment or 'default'}/{config.run.name}"
    check(config)
    return config


def check(config: RunConfig) -> None:
    """Check what several groups decide together.

    Raises:
        ConfigError: names the keys, their values and the way out.
    """
    for group in ("model", "optimizer", "schedule", "data"):
        choice = getattr(config, group)
        if isinstance(choice, Custom):
            choice.check_target(group)
    if isinstance(config.data, TextConfig) and not config.data.files:
        raise ConfigError("data.files must be given for data=text, e.g. 'data.files=[~/books/**/*.txt]'.")
    for name, spec in config.components.items():
        if not _is_component(spec):
            raise ConfigError(
                f"components.{name} must be {{_target_: my_module.MyClass, args: {{...}}}}, got {spec!r}."
            )
        if name in COMPONENTS:
            raise ConfigError(f"components.{name} is the name of a built-in component; choose another name.")
    _check_controls(config)
    _check_ignored(config)
    _check_is_proof(config)
    config.fault.check_keys()
    _check_crash(config)
    _check_data_fits_model(config)
    _check_choice_works_with_parallelism(config)
    check_world(config, config.ranks)


def _is_component(spec: Any) -> bool:
    return (
        isinstance(spec, dict)
        and isinstance(spec.get("_target_"), str)
        and spec["_target_"] != ""
        and isinstance(spec.get("args", {}), dict)
        and not set(spec) - {"_target_", "args"}
    )


def _components_of(config: RunConfig) -> list[str]:
    absent = {"scaler": config.precision.kind is not PrecisionKind.fp16, "ema": config.train.ema_decay is None}
    return [name for name in COMPONENTS if not absent.get(name)] + list(config.components)


def _check_ignored(config: RunConfig) -> None:
    """A pattern of ``proof.ignore`` says of which component it is, and leaves something of a built-in one."""
    there = _components_of(config)
    for pattern in config.proof.ignore:
        component, _, rest = pattern.partition(".")
        if component not in there:
            raise ConfigError(
                f"proof.ignore={pattern} names no component of this run; it has: {', '.join(there)}. A pattern begins "
                "with the component's name, written out, e.g. timer.* for components.timer."
            )
        if component in COMPONENTS and not rest.strip("*?."):
            raise ConfigError(
                f"proof.ignore={pattern} exempts all of {component!r}, which decides what the next step computes: "
                f"nothing would be proved of it. Name single leaves, e.g. {component}.<name>."
            )
        if component in _controls_by_name(config) and not rest.strip("*?."):
            raise ConfigError(
                f"proof.controls names {component!r}, all of which proof.ignore={pattern} exempts: leaving it out "
                "could not be noticed. Give one of the two."
            )


def _controls_by_name(config: RunConfig) -> list[str]:
    return config.proof.controls if isinstance(config.proof.controls, list) else []


def _check_controls(config: RunConfig) -> None:
    there = _components_of(config)
    for name in _controls_by_name(config):
        if name not in there:
            raise ConfigError(
                f"proof.controls names the component {name!r}, which this run does not have; it has: "
                f"{', '.join(there)}."
            )


def _check_is_proof(config: RunConfig) -> None:
    """Whoever says how a proof is done and asks for none has forgotten to choose it."""
    if config.fault.kind is not FaultKind.none or config.proof.full:
        return
    for name in ("controls", "resume_parallelism", "resume_nproc"):
        value = getattr(config.proof, name)
        # No controls are what a plain run has anyway.
        if value not in (None, []):
            shown = f"[{','.join(value)}]" if isinstance(value, list) else value
            raise ConfigError(
                f"proof.{name}={shown} has no effect, because nothing is to be proved. Choose a fault, e.g. "
                "fault=sigkill, or proof=full."
            )


def _check_crash(config: RunConfig) -> None:
    if config.crash.kind is CrashKind.none:
        for each in fields(CrashConfig):
            value = getattr(config.crash, each.name)
            if value != each.default:
                raise ConfigError(f"crash.{each.name}={value} has no effect. Choose crash=save.")
        return
    if config.job.kind is JobKind.ckptrun:
        raise ConfigError(
            f"crash={config.crash.kind} judges the saves of a command: ckptrun prove crash={config.crash.kind} -- "
            "COMMAND. ckptrun's own loop can be that command: torchrun -m ckptrun ... run.dir={run}"
        )
    if config.fault.kind is not FaultKind.none:
        raise ConfigError(
            f"crash={config.crash.kind} and fault={config.fault.kind} are two kinds of proof. Give one of the two."
        )


def check_world(config: RunConfig, world_size: int) -> MeshShape:
    """Check what depends on the number of ranks; return the mesh shape.

    Raises:
        ConfigError: Degrees, heads, features or batch do not divide as they must.
    """
    mesh = resolve_mesh(config.parallelism, world_size)
    config.train.accumulation(mesh.data_parallel)
    match config.model:
        case GPTConfig(heads=heads) if heads % mesh.tensor:
            raise ConfigError(
                f"model.heads ({heads}) must be a multiple of parallelism.tensor ({mesh.tensor}); "
                "each rank computes whole heads."
            )
        case MLPConfig(features=features):
            for size in features[1:-1:2]:
                if size % mesh.tensor:
                    raise ConfigError(
                        f"model.features ({size} of {list(features)}) must be a multiple of parallelism.tensor "
                        f"({mesh.tensor})."
                    )
        case GPTConfig() | CNNConfig() | CustomModelConfig():
            pass
        case _:
            raise InternalError(f"It is not known what {type(config.model).__name__} needs of a mesh.")
    return mesh


def _check_data_fits_model(config: RunConfig) -> None:
    text = isinstance(config.data, PythonSourceConfig | TextConfig)
    match config.model:
        case GPTConfig(vocabulary=vocabulary):
            fits, wanted = text or isinstance(config.data, CustomDataConfig), "python_source or data=text"
            if text and vocabulary < 256:
                raise ConfigError(f"model.vocabulary ({vocabulary}) must be at least 256: the data are bytes.")
        case MLPConfig():
            fits, wanted = isinstance(config.data, RandomConfig | CustomDataConfig), "random"
        case CNNConfig(classes=classes):
            fits, wanted = isinstance(config.data, ShapesConfig | CustomDataConfig), "shapes"
            if isinstance(config.data, ShapesConfig) and classes < 4:
                raise ConfigError(f"model.classes ({classes}) must be at least 4: data=shapes draws four shapes.")
        case CustomModelConfig():
            return
        case _:
            raise InternalError(f"It is not known what {type(config.model).__name__} learns from.")
    if not fits:
        raise ConfigError(
            f"{_choice(config.model)} cannot learn from {_choice(config.data)}; use data={wanted} or data=custom."
        )


def _choice(section: Any) -> str:
    return f"{type(section).__name__.removesuffix('Config')}"


def _check_choice_works_with_parallelism(config: RunConfig) -> None:
    kind = config.parallelism.kind
    if "tensor" in kind.axes:
        if isinstance(config.model, CNNConfig):
            raise ConfigError(
                f"model=cnn cannot run under parallelism={kind}: torch's tensor parallelism shards Linear and "
                "Embedding modules only, not convolutions. Use ddp, fsdp or hsdp."
            )
        if isinstance(config.model, CustomModelConfig) and not config.model.tensor_plan:
            raise ConfigError(
                f"parallelism={kind} needs model.tensor_plan for model=custom, e.g. "
                "'model.tensor_plan={layers.*.up: colwise, layers.*.down: rowwise}'."
            )
        if config.train.compile:
            raise ConfigError(
                f"train.compile=true is supported for none, ddp, fsdp and hsdp, not for parallelism={kind}; "
                "set train.compile=false."
            )
    if kind.is_fsdp1 and isinstance(config.optimizer, MuonConfig | AdafactorConfig):
        raise ConfigError(
            f"optimizer={_choice(config.optimizer).lower()} cannot run under parallelism={kind}: FullyShardedData"
            f"Parallel hands the optimizer flattened parts of parameters, and this optimizer needs rows and columns. "
            f"Use parallelism={kind.replace('1', '')} or optimizer=adamw."
        )
    if kind is ParallelismKind.none and config.launch.nproc not in (None, 1):
        raise ConfigError(
            f"launch.nproc={config.launch.nproc} makes no sense with parallelism=none; choose ddp, fsdp or another."
        )


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The config as nested plain values, for config.yaml and the manifest; enums become their names."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    if not isinstance(plain, dict):
        raise ConfigError("The config is not a mapping.")
    sections = {item.name: plain[item.name] for item in fields(config)}
    for group in ("model", "optimizer", "schedule", "data"):
        sections[group] = {"choice": _choice(getattr(config, group)), **sections[group]}
    return sections
