"""Records that are read again and again: their text is parsed once."""

from functools import lru_cache
from typing import TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)

KEPT = 32
"""More than one window has, and few enough to be small where it has hundreds of sites."""


def parsed(model: type[M], text: str) -> M:
    """The document of a text that this site wrote down. Only for closed, immutable models: all who ask share it."""
    found = _parsed(model, text)
    if not isinstance(found, model):
        raise TypeError(f"{type(found).__name__} is no {model.__name__}")
    return found


@lru_cache(maxsize=KEPT)
def _parsed(model: type[BaseModel], text: str) -> BaseModel:
    return model.model_validate_json(text)
