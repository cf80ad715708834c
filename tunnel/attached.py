"""What runs beside a server or a client, as those know it: something with figures, that follows the configuration.

The other way round it would be an import upwards: servers and clients know nothing of notices.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from attrs import define, field

C = TypeVar("C", contravariant=True)


@define(eq=False)
class Attached(Generic[C]):
    """`figures` stand in the stats of the server or client, by their keys; `appliers` get each new configuration."""

    figures: dict[str, Callable[[], Any]] = field(factory=dict)
    appliers: list[Callable[[C], object]] = field(factory=list)

    def stats(self) -> dict[str, Any]:
        return {name: figures() for name, figures in self.figures.items()}

    def apply(self, config: C) -> None:
        for apply in self.appliers:
            apply(config)
