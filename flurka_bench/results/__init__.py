"""What was seen: run folders, their records, and how they are read back.

A run is a folder with ``run.json`` (what was asked for, and on which machine) and
``measurements.jsonl`` (one final record per case, appended and synced as it is known). Only the
last line can ever be torn, by a crash or a full disk, and it is repaired when the run is taken up
again. All of it is data: JSON in, checked against ``FIELDS``, JSON out.
"""

from flurka_bench.results.reading import (
    META_NAME,
    RECORDS_NAME,
    Run,
    iter_records,
    read_meta,
    read_run,
    to_frame,
)
from flurka_bench.results.records import (
    FIELDS,
    SCHEMA,
    STATUSES,
    TIMING,
    Field,
    Form,
    check_record,
)
from flurka_bench.results.writing import RunWriter

__all__ = [
    "FIELDS", "META_NAME", "RECORDS_NAME", "SCHEMA", "STATUSES", "TIMING", "Field", "Form", "Run", "RunWriter", "check_record",
    "iter_records", "read_meta", "read_run", "to_frame",
]  # fmt: skip
