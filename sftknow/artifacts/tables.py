"""Records as Parquet tables: a row a record, a column a field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pyarrow as pa

R = TypeVar("R")

_TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "Split": pa.string(),
    "int": pa.int32(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "bool | None": pa.bool_(),
    "str | None": pa.string(),
    "float | None": pa.float64(),
    "tuple[str, ...]": pa.list_(pa.string()),
    "tuple[float, ...]": pa.list_(pa.float64()),
    "tuple[str, ...] | None": pa.list_(pa.string()),
}


def schema_of(record: type, **types: pa.DataType) -> pa.Schema:
    """The columns of a dataclass, in the order of its fields; some of them of types that are given by name."""
    fields = dataclasses.fields(record)
    return pa.schema([(field.name, types.get(field.name) or _TYPES[str(field.type)]) for field in fields])


def to_table(records: Iterable[object], schema: pa.Schema) -> pa.Table:
    """The table of some dataclass instances."""
    return pa.Table.from_pylist([vars(record) for record in records], schema=schema)


def to_record(make: Callable[..., R], row: Mapping[str, Any]) -> R:
    """The record of a row: lists, as Parquet has them, become tuples. Raises TypeError for other columns."""
    return make(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})
