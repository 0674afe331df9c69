"""Reads a pickle as what it is, a description of objects, without making any of them.

A pickle is a program for a small stack machine, and the machine of the standard library imports and calls whatever the
program names. This one has no instruction that does either: a class or function becomes a :class:`Named`, what would be
made by calling it a :class:`Described` with its name and arguments. Names that the caller did not admit are an error,
before anything is made of them. Works through the file once, in time and memory bounded by its length.

What a key of a dict may be is limited too: hashing a tuple of tuples of tuples can take for ever.
"""

import pickletools
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from ckptrun.errors import ForeignFileError
from ckptrun.text import cut

__all__ = ["Described", "Named", "read_pickle"]

_MAX_OPERATIONS = 2**25


@dataclass(frozen=True, slots=True)
class Named:
    """A class, function or constant that a pickle names; never looked up."""

    name: str
    """With its module."""


@dataclass(slots=True, eq=False)
class Described:
    """An object that a pickle describes; never made."""

    of: str
    """The class or function that would make it."""
    args: tuple[Any, ...]
    state: Any = None
    """What it would be filled with afterwards."""


def read_pickle(raw: bytes, admitted: Container[str], *, source: str) -> Any:
    """Return what ``raw`` describes: plain values, lists, tuples, dicts, :class:`Named` and :class:`Described`.

    A persistent id, as ``torch.save`` uses for storages, is a ``Described`` of ``""`` with it as its only argument.

    Args:
        raw: The pickle.
        admitted: The full names that may be in it.
        source: The file, for messages.

    Raises:
        ForeignFileError: It names something else; or is cut, damaged, or too large.
    """
    machine = _Machine(admitted, source)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(raw)):
            if count >= _MAX_OPERATIONS:
                raise ForeignFileError(
                    f"{source} has more than {_MAX_OPERATIONS} instructions, which is more than is read.", folder=source
                )
            machine.do(operation.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ForeignFileError(f"{source} is no whole pickle: {str(error)[:200]}.", folder=source) from error
    return machine.result()


class _Machine:
    """The stack machine. What is wrong with a pickle is a ``ValueError`` or ``IndexError`` here."""

    def __init__(self, admitted: Container[str], source: str) -> None:
        self._admitted = admitted
        self._source = source
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._operations = self._make_operations()

    def _make_operations(self) -> dict[str, Callable[[Any], None]]:
        push = self._push
        constants = {
            "NONE": None,
            "NEWTRUE": True,
            "NEWFALSE": False,
            "EMPTY_TUPLE": (),
        }
        operations: dict[str, Callable[[Any], None]] = {
            name: lambda _, value=value: push(value)  # type: ignore[misc]  # bound now, not when called
            for name, value in constants.items()
        }
        values = "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES"
        operations |= dict.fromkeys(values.split(), push)
        operations |= {
            "PROTO": lambda _: None,
            "FRAME": lambda _: None,
            "STOP": lambda _: None,
            "MARK": self._mark,
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_DICT": lambda _: push({}),
            "TUPLE": lambda _: push(tuple(self._pop_marked())),
            "TUPLE1": lambda _: push(self._pop_many(1)),
            "TUPLE2": lambda _: push(self._pop_many(2)),
            "TUPLE3": lambda _: push(self._pop_many(3)),
            "APPEND": lambda _: self._append(self._pop_many(1)),
            "APPENDS": lambda _: self._append(self._pop_marked()),
            "SETITEM": lambda _: self._set_items(self._pop_many(2)),
            "SETITEMS": lambda _: self._set_items(self._pop_marked()),
            "GLOBAL": lambda name: push(self._named(*name.split(" ", 1))),
            "STACK_GLOBAL": lambda _: push(self._named(*self._pop_many(2))),
            "REDUCE": self._make,
            "NEWOBJ": self._make,
            "BUILD": self._build,
            "BINPERSID": lambda _: push(Described("", self._pop_many(1))),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "BINGET": lambda index: push(self._memo[index]),
            "LONG_BINGET": lambda index: push(self._memo[index]),
        }
        return operations

    def do(self, name: str, argument: Any) -> None:
        """Do one instruction."""
        operation = self._operations.get(name)
        if operation is None:
            raise ValueError(f"it has the instruction {name}, which no such file needs")
        operation(argument)

    def result(self) -> Any:
        """Return what is left at the end."""
        if len(self._stack) != 1 or self._outer:
            raise ForeignFileError(f"{self._source} is no whole pickle: it leaves several objects.")
        return self._stack[0]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: Any) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _pop_marked(self) -> list[Any]:
        marked, self._stack = self._stack, self._outer.pop()
        return marked

    def _pop_many(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) < count:
            raise ValueError("its stack is empty")
        popped = tuple(self._stack[-count:])
        del self._stack[-count:]
        return popped

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _append(self, items: Any) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError(f"it appends to a {type(target).__name__}")
        target.extend(items)

    def _set_items(self, flat: Any) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(flat) % 2:
            raise ValueError(f"it sets items of a {type(target).__name__}")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if type(key) not in (str, int, Described):
                raise ValueError(f"a key of a dict is a {type(key).__name__}")
            target[key] = value

    def _named(self, module: Any, name: Any) -> Named:
        full = f"{module}.{name}"
        if not isinstance(module, str) or not isinstance(name, str) or full not in self._admitted:
            raise ForeignFileError(
                f"{self._source} asks for {cut(full, 200)}, which no such file needs. Nothing was run. Whoever wrote "
                "the file may have meant harm; or it was written by code that stores objects of its own.",
                folder=self._source,
            )
        return Named(full)

    def _make(self, _: Any) -> None:
        maker, args = self._pop_many(2)
        if type(maker) is not Named or type(args) is not tuple:
            raise ValueError(f"it calls a {type(maker).__name__} with a {type(args).__name__}")
        if maker.name == "collections.OrderedDict" and not args:
            self._push({})
        else:
            self._push(Described(maker.name, args))

    def _build(self, _: Any) -> None:
        (state,) = self._pop_many(1)
        target = self._stack[-1]
        if type(target) is not Described:
            raise ValueError(f"it fills a {type(target).__name__}")
        target.state = state
