"""Which overrides of a sweep are rows of its matrix, and which are columns. Pure. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

from ckptrun.report.sweep_facts import CellFacts

__all__ = ["Matrix", "matrix_of"]

_MOST_COLUMNS = 8
_WIDEST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Cells in rows and columns."""

    row_keys: Sequence[str]
    column_keys: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    """The values of the rows' overrides."""
    columns: Sequence[tuple[str, ...]]
    places: Mapping[tuple[tuple[str, ...], tuple[str, ...]], Sequence[CellFacts]]
    """Row and column -> the cells there; a combination that is no part of the sweep has none."""
    shared: Mapping[str, str]
    """Overrides that are the same in all cells."""
    shown: Mapping[str, Mapping[str, str]]
    """Override -> value -> how it is shown: of one that names a class or a file by its whole path the end will do."""

    def spans(self, level: int) -> list[tuple[str, int]]:
        """Return the values that one of the columns' overrides takes from left to right, each with its columns."""
        groups = groupby(self.columns, key=lambda column: column[: level + 1])
        return [(column[level], len(list(same))) for column, same in groups]


def matrix_of(cells: Sequence[CellFacts]) -> Matrix:
    """Lay cells out: columns are as many of the overrides with short and the fewest values as fit side by side.

    The overrides of both stay in the order in which they were typed; so do the values.
    """
    keys = list(dict.fromkeys(key for cell in cells for key in cell.values))
    values = {key: list(dict.fromkeys(cell.values.get(key, "") for cell in cells)) for key in keys}
    swept = [key for key in keys if len(values[key]) > 1]
    columns: list[str] = []
    shown = {key: _shown(values[key]) for key in keys}
    is_wide = {key: max(map(len, shown[key].values())) > _WIDEST for key in swept}
    for key in sorted(swept, key=lambda key: (is_wide[key], len(values[key]), -swept.index(key))):
        fits = prod(len(values[one]) for one in [*columns, key]) <= _MOST_COLUMNS and len(columns) < len(swept) - 1
        if fits and not (is_wide[key] and columns):
            columns.append(key)
    columns = [key for key in swept if key in columns]
    rows = [key for key in swept if key not in columns]
    places: dict[tuple[tuple[str, ...], tuple[str, ...]], list[CellFacts]] = {}
    for cell in cells:
        places.setdefault((_at(cell, rows), _at(cell, columns)), []).append(cell)
    return Matrix(
        row_keys=rows,
        column_keys=columns,
        rows=_ordered([at for at, _ in places], rows, values),
        columns=_ordered([at for _, at in places], columns, values),
        places=places,
        shared={key: values[key][0] for key in keys if len(values[key]) == 1},
        shown=shown,
    )


def _shown(values: Sequence[str]) -> dict[str, str]:
    """Values, in short where they are long and the short ones are still distinct."""
    short = {value: value.rpartition(".")[2].rpartition("/")[2] for value in values if len(value) > _WIDEST}
    is_telling = all(short.values()) and len({short.get(value, value) for value in values}) == len(values)
    return {value: short.get(value, value) if is_telling else value for value in values}


def _at(cell: CellFacts, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(cell.values.get(key, "") for key in keys)


def _ordered(
    found: Sequence[tuple[str, ...]], keys: Sequence[str], values: Mapping[str, Sequence[str]]
) -> list[tuple[str, ...]]:
    order = {key: {value: at for at, value in enumerate(values[key])} for key in keys}
    return sorted(set(found), key=lambda at: [order[key][value] for key, value in zip(keys, at, strict=True)])
