"""Statements that are run again and again, compiled once and then given to the driver as they are.

For each use of a statement SQLAlchemy finds its compiled form by what it consists of, and makes a context, a cursor and
a result around it. A statement object that comes a second time is one that was built once, as those of every message
are: from then on only its text, the order of its parameters and the conversions of its types are used, a text for each
length of a list. What is not that simple (rows that come back from many, Python's defaults) goes SQLAlchemy's way.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import Executable, Row
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

Convert = Callable[[Any], Any]
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
_Shape = tuple[str | tuple[str, int], ...]
MOST_SHAPES: Final = 16
"""Sets of parameters of one statement that are known; one with more goes SQLAlchemy's way."""
_PLAIN: Final = (sa.String, sa.Integer, sa.Float, sa.LargeBinary, sa.Boolean)


class Executed(Protocol):
    """What a statement came to."""

    @property
    def rowcount(self) -> int:
        """How many rows were written."""
        ...

    def all(self) -> Sequence[Row[Any]]: ...

    def first(self) -> Row[Any] | None: ...

    def scalar(self) -> Any: ...

    def scalar_one(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """`Executed`, of a plan."""

    rows: Sequence[Row[Any]]
    rowcount: int

    def all(self) -> Sequence[Row[Any]]:
        return self.rows

    def first(self) -> Row[Any] | None:
        return self.rows[0] if self.rows else None

    def scalar(self) -> Any:
        """The first column of the first row, or None."""
        return self.rows[0][0] if self.rows else None

    def scalar_one(self) -> Any:
        """The first column of the only row. Raises `LookupError` if it is not the only one."""
        if len(self.rows) != 1:
            raise LookupError(f"one row was expected, {len(self.rows)} came")
        return self.rows[0][0]


@dataclass(frozen=True, slots=True)
class _Bind:
    """One place of the text: the parameter's name and where in its list, or a value that the statement has itself."""

    given: str | None
    value: Any
    convert: Convert | None
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled statement. `row` makes a row of one tuple; None where no rows come back."""

    text: str
    binds: tuple[_Bind, ...]
    row: Convert | None
    tuples: frozenset[str] = frozenset()
    """Parameters that are lists of tuples, whose elements have a place each."""

    def arguments(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """The driver's arguments. Raises `KeyError` for a parameter that is missing."""
        if self.tuples:
            given = {**given, **{name: tuple(chain.from_iterable(given[name])) for name in self.tuples}}
        return tuple(
            bind.value
            if bind.given is None
            else _value(bind, given)
            if bind.convert is None
            else bind.convert(_value(bind, given))
            for bind in self.binds
        )


def _value(bind: _Bind, given: Mapping[str, Any]) -> Any:
    value = given[bind.given or ""]
    return value if bind.place is None else value[bind.place]


class Plans:
    """The plans of one engine, made when a statement comes for the second time."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: WeakKeyDictionary[Executable, dict[_Shape, Plan | None]] = WeakKeyDictionary()

    def find(self, statement: Executable, parameters: Parameters) -> Plan | None:
        """The plan for these parameters; None if SQLAlchemy is to run the statement."""
        shapes = self._known.get(statement)
        if shapes is None:
            self._known[statement] = {}
            return None
        first, many = _first(parameters)
        shape = tuple((name, len(value)) if isinstance(value, list | tuple) else name for name, value in first.items())
        shape = (*shape, "*") if many else shape
        if shape in shapes:
            return shapes[shape]
        if len(shapes) >= MOST_SHAPES:
            return None
        plan = shapes[shape] = self._make(statement, first, many=many)
        return plan

    def _make(self, statement: Executable, first: Mapping[str, Any], *, many: bool) -> Plan | None:
        if not isinstance(statement, sa.Select | sa.Insert | sa.Update | sa.Delete):
            return None
        names = frozenset(first)
        compiled = statement.compile(dialect=self._dialect, column_keys=sorted(names) or None)
        if not isinstance(compiled, SQLCompiler) or compiled.positiontup is None:
            return None
        if compiled.literal_execute_params or compiled.prefetch:
            return None
        if compiled.post_compile_params:
            return None if many else self._with_lists(compiled, first)
        columns = [(entry.keyname, entry.type) for entry in compiled._result_columns]
        if many and (columns or not names):
            return None
        binds = [self._bind(compiled, name, names) for name in compiled.positiontup]
        row = self._row(columns)
        if any(bind is None for bind in binds) or (columns and row is None):
            return None
        return Plan(str(compiled), tuple(bind for bind in binds if bind is not None), row)

    def _with_lists(self, compiled: SQLCompiler, first: Mapping[str, Any]) -> Plan | None:
        """The plan for lists of these lengths."""
        lists = {parameter.key: parameter for parameter in compiled.post_compile_params}
        if any(not isinstance(first.get(name), list | tuple) or not first[name] for name in lists):
            return None
        columns = [(entry.keyname, entry.type) for entry in compiled._result_columns]
        expanded, row = compiled.construct_expanded_state(dict(first)), self._row(columns)
        expansion = expanded.parameter_expansion.items()
        parts = {part: (name, place) for name, named in expansion for place, part in enumerate(named)}
        binds: list[_Bind | None] = []
        for part in expanded.positiontup or ():
            if part not in parts:
                binds.append(self._bind(compiled, part, frozenset(first)))
                continue
            name, place = parts[part]
            kinds = getattr(lists[name].type, "types", None) or (lists[name].type,)
            convert = kinds[place % len(kinds)].dialect_impl(self._dialect).bind_processor(self._dialect)
            binds.append(_Bind(name, None, convert, place))
        if any(bind is None for bind in binds) or (columns and row is None):
            return None
        tuples = frozenset(name for name, one in lists.items() if isinstance(one.type, sa.types.TupleType))
        return Plan(expanded.statement, tuple(bind for bind in binds if bind is not None), row, tuples)

    def _bind(self, compiled: SQLCompiler, name: str, names: frozenset[str]) -> _Bind | None:
        parameter = compiled.binds[name]
        convert = parameter.type.dialect_impl(self._dialect).bind_processor(self._dialect)
        given = next((one for one in (parameter.key, name) if one in names), None)
        if given is not None:
            return _Bind(given, None, convert)
        if parameter.required or parameter.callable is not None:
            return None
        return _Bind(None, parameter.value if convert is None else convert(parameter.value), None)

    def _row(self, columns: Sequence[tuple[str, Any]]) -> Convert | None:
        """How a row is made; None if its columns are not all of plain types with names of their own."""
        names = [name for name, _ in columns]
        fit = all(name.isidentifier() and not name.startswith("_") for name in names) and len({*names}) == len(names)
        if not names or not fit or not all(isinstance(kind, _PLAIN) for _, kind in columns):
            return None
        kind: Any = _line(tuple(names))
        converts = [self._convert(one) for _, one in columns]
        if not any(converts):
            return cast("Convert", kind._make)
        return lambda values: kind(
            *[value if convert is None else convert(value) for value, convert in zip(values, converts, strict=True)]
        )

    def _convert(self, kind: Any) -> Convert | None:
        """How the driver's value becomes ours; None where it is that already, as floats are in both databases."""
        if isinstance(kind, sa.Float) and not kind.asdecimal:
            return None
        convert: Convert | None = kind.dialect_impl(self._dialect).result_processor(self._dialect, None)
        return convert


def _first(parameters: Parameters) -> tuple[Mapping[str, Any], bool]:
    """The parameters, or the first set of several; and whether there are several."""
    if parameters is None or isinstance(parameters, Mapping):
        return parameters or {}, False
    return parameters[0] if parameters else {}, True


@lru_cache(maxsize=1024)
def _line(names: tuple[str, ...]) -> Any:
    """The type of rows with these columns, which answers as SQLAlchemy's do."""
    made: Any = type("Line", (namedtuple("Line", names),), {"__slots__": ()})
    made._mapping = property(lambda line: line._asdict())
    return made
