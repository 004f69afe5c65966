"""Message types by name. A type's name is given once and never used again for another meaning."""

from typing import Any, ClassVar

from cohortium_messages.ids import Wire


class Message(Wire):
    """A control message or event: a wire model with a type name of its own, such as `cohortium.window.ready.v1`."""

    type_name: ClassVar[str]

    def __init_subclass__(cls, *, type_name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if type_name:
            if type_name in MESSAGE_TYPES:
                raise TypeError(f"message type {type_name} is defined twice")
            cls.type_name = type_name
            MESSAGE_TYPES[type_name] = cls


MESSAGE_TYPES: dict[str, type[Message]] = {}


def released_types() -> dict[str, type[Message]]:
    """The types of this package, by name: the contract. Others may have been registered beside them, as tests do."""
    package = __name__.partition(".")[0] + "."
    return {name: kind for name, kind in MESSAGE_TYPES.items() if kind.__module__.startswith(package)}
