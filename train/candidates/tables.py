"""Parquet tables in and out: written atomically, the same bytes for the same values, read back with one clear error."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.weights import write_atomic
from ..sources import DataError

INFO_KEY = b"alignsr"  # one JSON object in the schema: what the table is and where it comes from


def write_table(path: Path, columns: Mapping[str, Any], info: Mapping[str, Any]) -> Path:
    """Write equally long columns.

    Args:
        path: ends in .parquet.
        columns: name -> NumPy array or list; strings repeat cheaply (dictionary-encoded).
        info: JSON-able facts kept in the file.
    """
    import json

    import pyarrow
    import pyarrow.parquet

    arrays: dict[str, Any] = {}
    for name, values in columns.items():
        array = pyarrow.array(values)
        arrays[name] = array.dictionary_encode() if pyarrow.types.is_string(array.type) else array
    table = pyarrow.table(arrays).replace_schema_metadata({INFO_KEY: json.dumps(dict(info), sort_keys=True)})
    return write_atomic(path, lambda part: pyarrow.parquet.write_table(table, part, compression="zstd"))


def read_table(path: Path, wanted: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(columns as NumPy arrays, facts) of a table; strings become arrays of objects.

    Raises:
        DataError: no such file, damaged, or without a column.
    """
    import json

    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise DataError(f"{path}: expected a Parquet table, found none; run the step before this one")
    try:
        table = pyarrow.parquet.read_table(path, use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: expected a Parquet table, got a damaged file ({error}); delete it and run again") from error
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path}: expected columns {', '.join(wanted)}, got {', '.join(table.column_names)}; choose another table"
        )
    info = json.loads((table.schema.metadata or {}).get(INFO_KEY, b"{}"))
    return {name: table.column(name).combine_chunks().to_numpy(zero_copy_only=False) for name in wanted}, info
