"""Records on disk: ArrayRecord shards with TFDS metadata, written atomically.

`write_shard` and `write_metadata` make an ordinary TFDS data set (split "train") that
`tfds.builder_from_directory` and `tfds.data_source` read; `RecordSource` reads the same files
without decoding the images.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import (
    array_record_data_source,
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)
from etils import epath
from google.protobuf.message import DecodeError
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from unialign_jax.data.tasks import SCHEMA_VERSION, BadItem, Record, Task, Turn
from unialign_jax.errors import UserError

SPLIT = "train"
# TFDS wants a version folder; it follows the record schema.
TFDS_VERSION = f"{SCHEMA_VERSION}.0.0"
TEMPORARY_PREFIX = ".writing-"
# Images are compressed already, so a second compression would only cost time. One record per
# group is what random access needs.
WRITER_OPTIONS = "group_size:1,uncompressed"
_FILENAME_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class RecordError(UserError):
    """One record that cannot be read; training replaces it and counts it."""


class Shard(NamedTuple):
    """A file of a stream: its name, its number of records and its size in bytes."""

    file: str
    examples: int
    bytes: int


@functools.cache
def features(images: bool = True) -> tfds.features.FeaturesDict:
    """The TFDS features of a record; `images=False` leaves images as encoded bytes.

    Both describe the same bytes on disk.
    """
    image = tfds.features.Image if images else tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            "schema_version": np.int32,
            "id": tfds.features.Text(),
            "task": tfds.features.Text(),
            "target": image(),
            "conditions": tfds.features.Sequence(image()),
            "instruction": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "turns": tfds.features.Sequence({"text": tfds.features.Text(), "is_answer": np.bool_}),
            "map_kind": tfds.features.Text(),
            "height": np.int32,
            "width": np.int32,
        }
    )


@functools.cache
def _serializer() -> ExampleSerializer:
    specs: Any = features(images=False).get_serialized_info()
    return ExampleSerializer(specs)


def serialize(record: Record) -> bytes:
    """A record as the tf.train.Example that is stored."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    fields["task"] = str(record.task)
    fields["turns"] = [{"text": t.text, "is_answer": t.is_answer} for t in record.turns]
    for name in ("conditions", "captions"):
        fields[name] = list(fields[name])
    example = _serializer().get_tf_example(features(images=False).encode_example(fields))
    # A plain serialisation orders the fields by chance; the same records must give the same file.
    return example.SerializeToString(deterministic=True)


def deserialize(data: bytes) -> Record:
    """The inverse of `serialize`.

    Raises:
        BadItem: "damaged" (not a record) or "schema" (another schema version).
    """
    try:
        fields: Any = features(images=False).deserialize_example_np(data)
        version = int(fields["schema_version"])
        if version != SCHEMA_VERSION:
            raise BadItem(
                "schema", f"schema version {version}, this program reads {SCHEMA_VERSION}"
            )
        turns = zip(fields["turns"]["text"], fields["turns"]["is_answer"], strict=True)
        return Record(
            id=fields["id"].decode(),
            task=Task(fields["task"].decode()),
            target=fields["target"],
            height=int(fields["height"]),
            width=int(fields["width"]),
            conditions=tuple(fields["conditions"]),
            instruction=fields["instruction"].decode(),
            captions=tuple(caption.decode() for caption in fields["captions"]),
            turns=tuple(Turn(text.decode(), bool(answer)) for text, answer in turns),
            map_kind=fields["map_kind"].decode(),
            schema_version=version,
        )
    except BadItem:
        raise
    except (DecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadItem("damaged", f"not a record of this schema: {error}") from error


def stream_directory(root: Path, name: str) -> Path:
    """Where the shards of stream `name` lie below a prepared directory."""
    return root / name / TFDS_VERSION


def shard_name(name: str, index: int, count: int) -> str:
    """The TFDS file name of shard `index` of `count`."""
    return f"{name}-{SPLIT}.array_record-{index:05d}-of-{count:05d}"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as RuntimeError
        raise UserError(
            f"cannot write {path}: {error}. Free some space or choose another --out; finished "
            "shards are kept and the same command continues after them"
        ) from error


def write_shard(path: Path, records: Iterable[Record]) -> Shard:
    """Writes a shard under a temporary name, flushes it to disk and renames it.

    Raises:
        UserError: when the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    examples = 0
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        for record in records:
            data = serialize(record)
            with _writing(path):
                writer.write(data)
            examples += 1
        with _writing(path):
            writer.close()
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            size = temporary.stat().st_size
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return Shard(path.name, examples, size)


def write_metadata(directory: Path, name: str, shards: Sequence[Shard]) -> None:
    """Writes `features.json` and `dataset_info.json` beside the shards of one stream."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(directory),
        dataset_name=name,
        split=SPLIT,
        filetype_suffix="array_record",
        template=_FILENAME_TEMPLATE,
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[shard.examples for shard in shards],
        num_bytes=sum(shard.bytes for shard in shards),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features(images=True),
        split_infos=[split],
        filename_template=_FILENAME_TEMPLATE,
        version=TFDS_VERSION,
        check_data=False,  # TFDS would check through TensorFlow
        description=f"UniAlignment records, stream {name}, schema {SCHEMA_VERSION}",
    )


@dataclasses.dataclass(frozen=True)
class _Span:
    """What ArrayRecord wants to know to open a file only when it is read."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RecordSource:
    """Random access to the records of one stream; images stay encoded.

    Args:
        directory: the folder with the shards.
        shards: the files in order.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]):
        self._directory = directory
        self._shards = [shard for shard in shards if shard.examples]
        self._ends = list(itertools.accumulate(shard.examples for shard in self._shards))
        spans: list[Any] = [
            _Span(str(directory / s.file), 0, s.examples, s.examples) for s in self._shards
        ]
        self._reader = array_record_data_source.ArrayRecordDataSource(spans)

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f"RecordSource({str(self._directory)!r}, {len(self)} records)"

    def where(self, index: int) -> str:
        """File and place of a record, for messages."""
        shard = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        return f"{self._directory / self._shards[shard].file}, record {place}"

    def __getitem__(self, index: int) -> Record:
        """Reads a record.

        Raises:
            RecordError: naming the file, the place in it and the remedy.
            IndexError: outside 0..len-1.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return deserialize(self._reader[index])
        except BadItem as error:
            remedy = (
                "prepare the data set again with this program"
                if error.kind == "schema"
                else "the file is damaged: prepare the data set again"
            )
            raise RecordError(f"{self.where(index)}: {error.reason}; {remedy}") from error
        except (RuntimeError, OSError, IndexError) as error:
            raise RecordError(
                f"{self.where(index)}: {error or 'cannot be read'}; "
                "the file is damaged: delete it and run `unialign prepare` again"
            ) from error
