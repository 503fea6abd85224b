"""The files of a LeRobotDataset v3.0: names, features, parquet schemas, and how a file gets onto the disk whole.

Facts from LeRobot's own loader (`lerobot/datasets`, codebase version v3.0): `info.json` names the features and path
patterns; parquet schemas carry Hugging Face feature types under the key `huggingface`; `tasks.parquet` is a pandas
frame indexed by instruction; a vector of one dimension is stored as a scalar column. That loader reads a dataset of
ours in benchmarks/experiments/check_lerobot_loader.py.
"""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simplevla.errors import UserError
from simplevla.suites.base import SuiteSpec

CODEBASE_VERSION = "v3.0"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_PER_CHUNK = 1000
STATE, ACTION = "observation.state", "action"
IMAGE_PREFIX = "observation.images."
INDEX_FEATURES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def features_of(spec: SuiteSpec) -> dict[str, dict[str, Any]]:
    """The `features` of `info.json` for a suite's observations and actions."""
    features: dict[str, dict[str, Any]] = {}
    for camera, (height, width) in spec.cameras.items():
        features[IMAGE_PREFIX + camera] = {
            "dtype": "image",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
    for key, names in ((STATE, spec.state_names), (ACTION, spec.action_names)):
        features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    for key, dtype in INDEX_FEATURES.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def data_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """Parquet schema of the data files, with the Hugging Face feature types that LeRobot's loader looks for."""
    fields: list[pa.Field] = []
    types: dict[str, Any] = {}
    for key, feature in features.items():
        size = feature["shape"][0]
        if feature["dtype"] == "image":
            fields.append(pa.field(key, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
            types[key] = {"_type": "Image"}
            continue
        value = pa.type_for_alias(feature["dtype"])
        types[key] = {"dtype": feature["dtype"], "_type": "Value"}
        if size > 1:
            types[key] = {"feature": types[key], "length": size, "_type": "Sequence"}
        fields.append(pa.field(key, pa.list_(value, size) if size > 1 else value))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": types}})})


def vector_array(values: np.ndarray) -> pa.Array:
    """A parquet column of float32 `values` [F, D]."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1), pa.float32())
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def column_values(column: pa.ChunkedArray | pa.Array, dimensions: int, dtype: Any = np.float32) -> np.ndarray:
    """`dtype` [F, D] of a column of vectors or numbers, whatever list type holds them.

    Raises:
        UserError: a row is null or has another length, or holds something else than numbers; names the first such row.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    kind = array.type
    if pa.types.is_nested(kind) and not pa.types.is_struct(kind) and not pa.types.is_map(kind):
        lengths = np.asarray(pc.list_value_length(array).fill_null(-1))
        # Only rows that all have their length can be laid end to end.
        array = array.flatten() if (lengths == dimensions).all() else array
    else:
        lengths = np.where(np.asarray(array.is_valid()), 1, -1)
    if (lengths != dimensions).any():
        row = int(np.argmax(lengths != dimensions))
        got = "is null" if lengths[row] < 0 else f"has {lengths[row]} numbers"
        raise UserError(f"row {row} {got}; expected {dimensions} numbers in every row")
    kind = array.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"it holds {kind}; expected numbers")
    if array.null_count:
        row = int(np.argmin(np.asarray(array.is_valid()))) // dimensions
        raise UserError(f"row {row} holds a null; expected {dimensions} numbers in every row")
    values = array.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.asarray(values, dtype=dtype).reshape(-1, dimensions)
    if np.issubdtype(dtype, np.integer) and not np.array_equal(converted.reshape(-1), values):
        raise UserError(f"it holds {kind} values that aren't whole; expected whole numbers")
    return converted


def tasks_table(instructions: Sequence[str]) -> pa.Table:
    """`tasks.parquet`: the pandas metadata make the instruction the index, as LeRobot looks tasks up by it."""
    metadata = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(range(len(instructions)), pa.int64()), "task": list(instructions)})
    return table.replace_schema_metadata({"pandas": json.dumps(metadata)})


def parquet_bytes(tables: Sequence[pa.Table]) -> bytes:
    """One parquet file with a row group for each of `tables` (LeRobot reads single episodes by row group)."""
    schema = tables[0].schema
    # Dictionaries and min/max of compressed images would cost time and repeat whole images in the footer.
    plain = [name for name, kind in zip(schema.names, schema.types, strict=True) if not pa.types.is_struct(kind)]
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, use_dictionary=plain, write_statistics=plain) as writer:
        for table in tables:
            writer.write_table(table)
    return buffer.getvalue()


def json_bytes(value: Any) -> bytes:
    """Readable JSON; NaN and infinity are refused, since other readers reject them."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
