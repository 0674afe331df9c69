"""Adds up the words of many leaves, each times its multipliers (steps 4 and 5 of the definition).

Works on the device of each chunk, in temporaries of bounded size. Lines are multiplied by the place weights in float64
matrix products, which are exact here, then by the multipliers of line and row in 64-bit integers, which wrap. Small
blocks are put together first, so that thousands of small leaves do not cost thousands of products. Must not know
dtypes, digits, ranks or files.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ckptrun.digest.multipliers import LINES, ROWS, WORDS_PER_LINE, combine, factors, place_weights
from ckptrun.digest.words import Block, blocks

__all__ = ["Tally"]

# Words of a block, and words converted to float64 at a time. On a CPU the latter should stay in the cache of a core but
# be worth the calls; on an accelerator they should be worth the launches.
_CPU_WORDS = (1 << 21, 1 << 18)
_OTHER_WORDS = (1 << 24, 1 << 24)

# Up to so many lines, a block is put together with others before it is multiplied.
_FEW_LINES = 64
_BATCH_LINES = 512


class Tally:
    """The sums of several leaves, of which chunks come in any order and from any device.

    Each device has its own totals; nothing is transferred to the host before :meth:`totals`. Call under ``no_grad``.
    """

    def __init__(self, leaves: int) -> None:
        self._leaves = leaves
        self._per_device: dict[torch.device, _DeviceTally] = {}

    def add(self, leaf: int, chunk: Tensor, *, offsets: Sequence[int], shape: Sequence[int]) -> None:
        """Add a chunk of leaf number ``leaf``; arguments as in :func:`chunk_sums`, unchecked."""
        tally = self._per_device.get(chunk.device)
        if tally is None:
            tally = self._per_device[chunk.device] = _DeviceTally(self._leaves, chunk.device)
        for block in blocks(chunk, offsets=offsets, shape=shape, limit_words=tally.block_words):
            tally.add(leaf, block)

    def totals(self) -> Tensor:
        """The two sums of each leaf, 0 where no chunk came. Shape: (leaves, 2) int64 on the CPU, unsigned bits."""
        totals = torch.zeros((self._leaves, 2), dtype=torch.int64, device="cpu")
        for tally in self._per_device.values():
            totals += (tally.line_totals() * combine(tally.device)).sum(2).to("cpu")
        return totals


class _DeviceTally:
    """The four weighted sums of all lines of each leaf, each line times its multiplier for either sum."""

    def __init__(self, leaves: int, device: torch.device) -> None:
        self.device = device
        self.block_words, self._piece_words = _CPU_WORDS if device.type == "cpu" else _OTHER_WORDS
        self._totals = torch.zeros((leaves, 2, 4), dtype=torch.int64, device=device)
        self._weights = place_weights(device)
        # One scratch for all: fresh memory costs more than the conversion into it.
        self._scratch: Tensor | None = None
        self._batch: Tensor | None = None
        self._batched: list[tuple[int, int, int, int, int]] = []
        self._used = 0

    def add(self, leaf: int, block: Block) -> None:
        rows, count = block.words.shape
        line, place = divmod(block.first_word, WORDS_PER_LINE)
        lines = -(-(place + count) // WORDS_PER_LINE)
        if rows * lines <= _FEW_LINES and isinstance(block.rows, range):
            self._put_in_batch(block.words, place, (leaf, block.rows.start, rows, line, lines))
            return
        multipliers = factors(ROWS, block.rows, self.device)
        for words, place, segment in _segments(block.words, block.first_word):
            sums = self._line_sums(words, self._weights[:, place : place + words.shape[2]])
            both = multipliers[:, :, None] * factors(LINES, segment, self.device)[:, None, :]
            self._totals[leaf] += (sums[None] * both.reshape(2, 1, -1)).sum(2)

    def line_totals(self) -> Tensor:
        """Shape: (leaves, 2, 4) int64."""
        self._empty_batch()
        return self._totals

    def _put_in_batch(self, words: Tensor, place: int, entry: tuple[int, int, int, int, int]) -> None:
        rows, lines = entry[2], entry[4]
        if self._used + rows * lines > _BATCH_LINES:
            self._empty_batch()
        if self._batch is None:
            self._batch = torch.zeros((_BATCH_LINES, WORDS_PER_LINE), dtype=torch.float64, device=self.device)
        frame = self._batch[self._used : self._used + rows * lines].view(rows, lines * WORDS_PER_LINE)
        frame[:, place : place + words.shape[1]] = words
        self._batched.append(entry)
        self._used += rows * lines

    def _empty_batch(self) -> None:
        if self._batch is None or not self._batched:
            return
        leaf, first_row, rows, first_line, lines = np.array(self._batched, dtype=np.int64).T
        counts = rows * lines
        which = np.repeat(np.arange(len(counts)), counts)
        row, line = np.divmod(np.arange(self._used) - (np.cumsum(counts) - counts)[which], lines[which])
        multipliers = factors(ROWS, first_row[which] + row, self.device)
        multipliers = multipliers * factors(LINES, first_line[which] + line, self.device)
        sums = torch.mm(self._weights, self._batch[: self._used].t()).to(torch.int64)
        products = (sums[None] * multipliers[:, None]).permute(2, 0, 1)
        self._totals.index_add_(0, torch.from_numpy(leaf[which]).to(self.device), products)
        self._batch.zero_()
        self._batched.clear()
        self._used = 0

    def _line_sums(self, words: Tensor, weights: Tensor) -> Tensor:
        """Shapes: words (rows, lines, width), weights (4, width) float64; result (4, rows * lines) int64."""
        rows, lines, width = words.shape
        if lines > 1 and (rows == 1 or words.stride(0) == lines * words.stride(1)):
            words, rows, lines = words.flatten(0, 1)[:, None], rows * lines, 1
        if rows > 1 and lines * width > self._piece_words:
            return torch.cat([self._line_sums(row[None], weights) for row in words], 1)
        step = min(rows, self._piece_words // (lines * width))
        if self._scratch is None or self._scratch.numel() < step * lines * width:
            self._scratch = torch.empty(step * lines * width, dtype=torch.float64, device=self.device)
        pieces = torch.split(words, step)
        result = torch.empty((len(pieces), 4, step * lines), dtype=torch.float64, device=self.device)
        exact = self._scratch[: step * lines * width]
        target, factor = exact.view(step, lines, width), exact.view(step * lines, width).t()
        for piece, place in zip(pieces, result.unbind(), strict=True):
            if piece.shape[0] < step:
                # The last piece: what is left of the one before makes sums that are cut off below.
                target = target[: piece.shape[0]]
            target.copy_(piece)
            torch.mm(weights, factor, out=place)
        return result.to(torch.int64).permute(1, 0, 2).reshape(4, -1)[:, : rows * lines]


def _segments(words: Tensor, first_word: int) -> Iterator[tuple[Tensor, int, range]]:
    """Divide rows of words where lines end: the end of a line, whole lines, the beginning of a line.

    Yields (rows, lines, words of a line), the place of the first word in its line, the numbers of the lines.
    """
    rows, count = words.shape
    line, place = divmod(first_word, WORDS_PER_LINE)
    taken = 0
    if place:
        taken = min(WORDS_PER_LINE - place, count)
        yield words[:, None, :taken], place, range(line, line + 1)
        line += 1
    whole = (count - taken) // WORDS_PER_LINE
    if whole:
        middle = words[:, taken : taken + whole * WORDS_PER_LINE]
        yield middle.view(rows, whole, WORDS_PER_LINE), 0, range(line, line + whole)
        taken += whole * WORDS_PER_LINE
        line += whole
    if taken < count:
        yield words[:, None, taken:], 0, range(line, line + 1)
