"""What a run is trained on: datasets, and the stream of batches that each rank takes from them.

The global order of samples depends on the seed and the epoch only; :mod:`ckptrun.data.order` says how, and how ranks
share it. :class:`DataStream` is the ``data`` component of the state.
"""

from ckptrun.data.order import SampleOrder, Share
from ckptrun.data.stream import DataStream
from ckptrun.data.synthetic import RandomTensors, Shapes
from ckptrun.data.text import PythonSource, Text

__all__ = ["DataStream", "PythonSource", "RandomTensors", "SampleOrder", "Shapes", "Share", "Text"]
