"""Parts of a LAM by name: built-in ones, registered ones, and those of installed packages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from lamina.errors import LaminaError
from lamina.files import reason

T = TypeVar("T")


def load_entry_point(part: str, point: EntryPoint) -> Any:
    """What an installed package offers as a ``part`` (encoder, method). Raises LaminaError if it cannot be imported."""
    try:
        return point.load()
    except Exception as error:  # a package may raise anything while it is imported
        what = f"{type(error).__name__}: {reason(error)}"
        raise LaminaError(f"{part} '{point.name}' ({point.value}) cannot be imported: {what}") from error


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes of one kind of part by name. Each class has a ``Config``, a frozen dataclass, by which a LAM's config names its part.

    ``group``: the entry point group in which installed packages offer further classes; they are imported when they are asked for.
    """

    def __init__(self, part: str, classes: Mapping[str, type[T]], group: str | None = None):
        self.part, self.group = part, group
        self._classes = dict(classes)

    def __getitem__(self, name: str) -> type[T]:
        """The class of that name. Raises KeyError if there is none, LaminaError if an installed one cannot be imported."""
        if name not in self._classes:
            self.register(name, load_entry_point(self.part, self._installed()[name]))
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        known = list(self._classes)
        yield from known
        yield from (name for name in self._installed() if name not in known)  # looked for only by who goes on to them

    def __len__(self) -> int:
        return len(list(iter(self)))

    def register(self, name: str, kind: type[T]) -> None:
        """Make ``kind`` available under ``name``. Raises LaminaError for a name that is taken or a Config that is no frozen dataclass."""
        config = getattr(kind, "Config", None)
        parameters = getattr(config, "__dataclass_params__", None)
        if parameters is None or not parameters.frozen:
            raise LaminaError(f"{self.part} '{name}': its class needs a Config that is a frozen dataclass")
        taken = self._classes.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (kind.__module__, kind.__qualname__):
            raise LaminaError(
                f"{self.part} '{name}' is {taken.__module__}.{taken.__qualname__} already; choose another name"
            )
        self._classes[name] = kind

    def name_of(self, config: Any) -> str:
        """The name of the part that ``config`` belongs to. Raises LaminaError if its class is not registered."""
        for name in self:
            if isinstance(config, self[name].Config):  # type: ignore[attr-defined]
                return name
        kind = type(config)
        raise LaminaError(f"{kind.__module__}.{kind.__qualname__} is the Config of no registered {self.part}")

    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)} if self.group else {}
