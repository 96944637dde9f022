"""Many part files to one parquet file, with no more than a few row groups in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import parquet

from finetune.relabel import files
from finetune.relabel.schema import WRITING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

GROUP_ROWS = 65_536


def merge(
    parts: Sequence[Path], out: Path, *, schema: pa.Schema, metadata: Mapping[str, str], group_rows: int = GROUP_ROWS
) -> int:
    """Write the rows of all parts, in their order, as one file, in one step.

    Row groups have the same number of rows whatever the episodes' lengths, so the bytes depend on rows and metadata
    only.

    Returns:
        the number of rows.
    """
    rows = 0
    whole = schema.with_metadata(dict(metadata))
    with files.finished_or_absent(out) as temporary, parquet.ParquetWriter(temporary, whole, **WRITING) as writer:
        for group in _groups(parts, schema, group_rows):
            writer.write_table(group.cast(whole), row_group_size=group_rows)
            rows += group.num_rows
    return rows


def _groups(parts: Sequence[Path], schema: pa.Schema, group_rows: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    count = 0
    for path in parts:
        held.append(parquet.read_table(path).replace_schema_metadata(None).cast(schema))
        count += held[-1].num_rows
        while count >= group_rows:
            table = pa.concat_tables(held).combine_chunks()
            yield table.slice(0, group_rows)
            held, count = [table.slice(group_rows)], count - group_rows
    if count:
        yield pa.concat_tables(held).combine_chunks()
