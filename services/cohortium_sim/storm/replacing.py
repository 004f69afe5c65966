"""Put something else in a name's place for a while: how the simulator gets under services that know nothing of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, **names: Any) -> Iterator[None]:
    """Set these attributes of a module or class, and set them back at the end."""
    missing = object()
    before = {name: vars(owner).get(name, missing) for name in names}
    with ExitStack() as stack:
        for name, value in names.items():
            setattr(owner, name, value)
            if before[name] is missing:
                stack.callback(delattr, owner, name)
            else:
                stack.callback(setattr, owner, name, before[name])
        yield
