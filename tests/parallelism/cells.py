"""The combinations of docs/parallelism.md: what each is, how it is tried, and how the table is written."""

import math
from collections.abc import Iterable, Mapping

from ckptrun.config.parallelism import ParallelismKind
from ckptrun.errors import ConfigError
from tests.parallelism.training import KINDS, Recipe, Run, resumed_differences

Cell = tuple[str, str, str]
"""(kind, model, column)"""

MODELS = ("gpt", "moe", "mlp", "cnn")
COLUMNS = {
    "`fp32`": {},
    "`precision=bf16`": {"precision": "bf16"},
    "`precision=fp16`": {"precision": "fp16"},
    "`train.accumulate=2`": {"accumulate": 2},
    "`train.activation_checkpointing=true`": {"activation_checkpointing": True},
    "`train.compile=true`": {"compile": True},
    "`model.tied_embeddings=true`": {"tied": True},
}
RESUMED = ("gpt",)
"""Models with which a cell is also saved and resumed, like all that is compiled; the others take two steps."""
COMPILED = "`train.compile=true`"
TIED = "`model.tied_embeddings=true`"
# To compile takes seconds: every kind is tried once, the transformer once; the other cells say that they were not.
_COMPILED_MODELS = {"mlp": KINDS, "gpt": ("fsdp",)}

WORKS, NOT_TRIED = "works", "not tried"


def recipe_of(cell: Cell) -> Recipe:
    kind, model, column = cell
    return Recipe(kind=kind, model=model, layers=1, **COLUMNS[column])


def all_cells() -> list[Cell]:
    return [(kind, model, column) for kind in KINDS for model in MODELS for column in COLUMNS]


def has_ties(model: str) -> bool:
    return model in ("gpt", "moe")


def quick_cells() -> list[Cell]:
    cells = [cell for cell in all_cells() if cell[2] != TIED or has_ties(cell[1])]
    return [cell for cell in cells if cell[2] != COMPILED or _is_refused_at_once(cell)]


def _is_refused_at_once(cell: Cell) -> bool:
    return cell[1] == "cnn" and "tensor" in ParallelismKind(cell[0]).axes


def compiled_cells() -> list[Cell]:
    return [(kind, model, COMPILED) for model, kinds in _COMPILED_MODELS.items() for kind in kinds]


def outcome(cell: Cell) -> str:
    """What came of trying the cell on this rank: WORKS, or what was said or seen instead."""
    recipe = recipe_of(cell)
    try:
        if recipe.model in RESUMED or recipe.compile:
            different = resumed_differences(recipe)
            return f"a resumed run differs in {different[:3]}" if different else WORKS
        numbers = [float.fromhex(number) for step in Run(recipe).steps(0, 2) for number in step]
    except ConfigError as error:
        return str(error).replace(f"parallelism={cell[0]}", "this kind")
    return WORKS if all(map(math.isfinite, numbers)) else f"loss and gradient norm are {numbers}"


def outcomes(cells: Iterable[Cell]) -> dict[Cell, str]:
    return {cell: outcome(cell) for cell in cells}


def table(results: Mapping[Cell, str]) -> str:
    """One Markdown table per model, and the reasons of refusals as notes below."""
    reasons = list(dict.fromkeys(said for said in results.values() if said != WORKS))
    lines: list[str] = []
    for model in MODELS:
        columns = [column for column in COLUMNS if column != TIED or has_ties(model)]
        lines += [
            f"### `model={model}`",
            "",
            f"| `parallelism=` | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        lines += [f"| `{kind}` | {_row(results, kind, model, columns, reasons)} |" for kind in KINDS]
        lines.append("")
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join(lines)


def _row(results: Mapping[Cell, str], kind: str, model: str, columns: list[str], reasons: list[str]) -> str:
    said = [results.get((kind, model, column), NOT_TRIED) for column in columns]
    return " | ".join(text if text in (WORKS, NOT_TRIED) else f"refused ({reasons.index(text) + 1})" for text in said)
