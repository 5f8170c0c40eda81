"""Classes of fixed fields, as `dataclasses.dataclass(frozen=True)` makes them, without its compiled methods.

`dataclass` compiles five or more methods for every class, which takes half a millisecond a class and was half of what
this package added to the start of a program. A record's methods are written once, here, and look its fields up.
"""

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass
from typing import TypeVar

from typing_extensions import dataclass_transform

Class = TypeVar("Class", bound=type)


def _init(self, *args, **values) -> None:
    fields: dict[str, Field] = self.__dataclass_fields__
    name_of_class = type(self).__name__
    if len(args) > len(self.__match_args__):
        message = f"{name_of_class} takes {len(self.__match_args__)} values by position, {len(args)} were given."
        raise TypeError(message)
    for name, value in zip(self.__match_args__, args, strict=False):
        if name in values:
            message = f"{name_of_class} got {name!r} twice."
            raise TypeError(message)
        values[name] = value
    if unknown := values.keys() - fields.keys():
        message = f"{name_of_class} has no field {', '.join(sorted(unknown))}."
        raise TypeError(message)
    for name, field in fields.items():
        if name in values:
            value = values[name]
        elif field.default is not MISSING:
            value = field.default
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            message = f"{name_of_class} needs a value for {name!r}."
            raise TypeError(message)
        object.__setattr__(self, name, value)
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _values(self) -> tuple:
    return tuple(getattr(self, name) for name in self.__dataclass_fields__)


def _repr(self) -> str:
    shown = (
        f"{field.name}={getattr(self, field.name)!r}" for field in self.__dataclass_fields__.values() if field.repr
    )
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self) -> int:
    return hash(_values(self))


def _setattr(self, name: str, value: object) -> None:
    message = f"{type(self).__name__}.{name} cannot be changed."
    raise FrozenInstanceError(message)


def _delattr(self, name: str) -> None:
    message = f"{type(self).__name__}.{name} cannot be deleted."
    raise FrozenInstanceError(message)


@dataclass_transform(frozen_default=True)
def record(cls: Class | None = None, *, eq: bool = True, kw_only: bool = False) -> Class:
    """Make a class a frozen dataclass: `dataclasses.replace`, `asdict` and `field` work, values cannot be changed.

    Args:
        cls: the class, with annotated fields; without `InitVar` and `ClassVar`.
        eq: compare and hash by the fields' values; otherwise by identity.
        kw_only: take values by name alone.

    Returns:
        The same class. Its constructor raises TypeError for a value too many, too few, or of no field.
    """
    if cls is None:
        return lambda made: record(made, eq=eq, kw_only=kw_only)
    cls.__init__, cls.__repr__ = _init, _repr
    cls.__setattr__, cls.__delattr__ = _setattr, _delattr
    if eq:
        cls.__eq__, cls.__hash__ = _eq, _hash
    return dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)
