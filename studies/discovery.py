"""Finds variants by file name, without importing them: a file dropped into a variant folder is a variant.

A variant's name is its file name with ``-`` for ``_``. Other distributions add variants through the entry-point group
``supernas.<folder>``, such as ``supernas.nas.algorithms``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pkgutil import iter_modules


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantFolder:
    """A package whose modules are interchangeable.

    Attributes:
        package: dotted name of the folder, such as ``nas.algorithms``.
        attribute: what every module of it defines.
        kind: what one variant is called in messages.
    """

    package: str
    attribute: str
    kind: str

    @property
    def group(self) -> str:
        """The entry-point group in which other distributions offer variants."""
        return f"supernas.{self.package}"

    def names(self) -> tuple[str, ...]:
        """All known names in alphabetical order; imports no variant."""
        return tuple(sorted({*self._modules(), *self._offered()}))

    def check(self, name: str) -> None:
        """Refuse a name without importing anything; ValueError names the known ones."""
        if _dashed(name) not in self.names():
            folder = self.package.replace(".", "/")
            raise ValueError(
                f"unknown {self.kind} {name!r}; known are {', '.join(self.names())}"
                f" (a new one is a file in {folder}/ that defines `{self.attribute}`)"
            )

    def load(self, name: str) -> object:
        """Import one variant.

        Raises:
            ValueError: no variant has this name.
        """
        if module := self._modules().get(_dashed(name)):
            return getattr(import_module(module), self.attribute)
        self.check(name)
        return self._offered()[_dashed(name)].load()

    def _modules(self) -> dict[str, str]:
        spec = find_spec(self.package)
        locations = spec.submodule_search_locations if spec else None
        assert locations is not None, f"{self.package} is not a package"
        found = iter_modules(list(locations))
        return {_dashed(m.name): f"{self.package}.{m.name}" for m in found if not m.name.startswith("_")}

    def _offered(self) -> dict[str, EntryPoint]:
        return {_dashed(point.name): point for point in entry_points(group=self.group)}


def _dashed(name: str) -> str:
    return name.replace("_", "-")
