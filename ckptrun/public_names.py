"""Keeps the public names of the package what they are, in any order of imports. Standard library only."""

from types import ModuleType

__all__ = ["Package"]


class Package(ModuleType):
    """The class of ``ckptrun`` itself.

    Whoever imports ``ckptrun.digest``, the folder, makes Python bind the module to that name in the package, where the
    function of the same name would then be hidden. Such a binding is passed over: the folder is found through
    ``sys.modules``, as every import does, and ``ckptrun.digest`` stays the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in self.__all__:
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})
