"""The outcome of a sweep as JUnit XML, which CI systems show. Torch-free."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from ckptrun.sweep.cell import Cell, CellVerdict

__all__ = ["junit_xml"]

# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELEMENTS = {
    CellVerdict.different: "failure",
    CellVerdict.not_verified: "failure",
    CellVerdict.failed: "error",
    CellVerdict.skipped: "skipped",
}


def junit_xml(suite: str, cells: Sequence[Cell]) -> str:
    """One test case per cell: ``failure`` is a verdict that is not equal, ``error`` a run that failed.

    By the schema that CI systems read it by (junit-10.xsd of Jenkins' xUnit plugin) the root counts no skipped cases.

    Args:
        suite: The name of the sweep.
        cells: In the order in which they ran.
    """
    kinds = [_ELEMENTS.get(cell.verdict) for cell in cells]
    counts = {
        "tests": str(len(cells)),
        "failures": str(kinds.count("failure")),
        "errors": str(kinds.count("error")),
        "skipped": str(kinds.count("skipped")),
        "time": f"{sum(cell.seconds for cell in cells):.3f}",
    }
    of_all = {name: count for name, count in counts.items() if name != "skipped"}
    root = ElementTree.Element("testsuites", {"name": "ckptrun", **of_all})
    element = ElementTree.SubElement(root, "testsuite", {"name": _clean(suite), **counts})
    for cell, kind in zip(cells, kinds, strict=True):
        case = ElementTree.SubElement(
            element, "testcase", {"classname": _clean(suite), "name": _clean(cell.name), "time": f"{cell.seconds:.3f}"}
        )
        if kind is not None:
            # A message is an attribute, where lines are not kept; the whole text follows.
            outcome = ElementTree.SubElement(case, kind, {"message": _clean(_message(cell))})
            if kind != "skipped":
                outcome.set("type", cell.verdict)
                outcome.text = _clean(f"{cell.reason}\n\nckptrun {' '.join(cell.overrides)}")
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document.decode() + "\n"


def _message(cell: Cell) -> str:
    first = cell.reason.strip().split("\n", 1)[0]
    return cell.reason if cell.verdict is CellVerdict.skipped else f"{cell.verdict}: {first}"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
