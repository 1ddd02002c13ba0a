"""Parquet files that cannot be meant: cut, flipped, and with heads and footers that claim what is not so."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from .malformed import GOOD, NOISE, Case, flipped, saved
from .thrift import BINARY, I32, STRUCT, Reader, changed, written

ROWS = 40
PARQUET: dict[str, Case] = {}


def table(**more):
    columns = {"group_id": [f"p{i // 4}" for i in range(ROWS)], "reward": [float(i % 3 == 0) for i in range(ROWS)]}
    return pa.table(columns | {"text": [f"answer {i}" for i in range(ROWS)]} | more)


def parquet(content=None, **options):
    return saved(lambda sink, given: pq.write_table(given, sink, **options), table() if content is None else content)


def case(name, content, *words, kept=None):
    def make(directory):
        (directory / "in.parquet").write_bytes(content() if callable(content) else content)
        return directory / "in.parquet"

    PARQUET[name] = Case(make, ("in.parquet", *words), kept)


PLAIN = parquet(compression="none", use_dictionary=False, store_schema=False)
CODED = parquet(compression="none", store_schema=False)
CHECKED = parquet(compression="none", write_page_checksum=True, use_dictionary=False)
DAMAGED = "it is damaged, or no Parquet file"


def opened(file):
    """What is before the footer, and the footer."""
    start = len(file) - 8 - int.from_bytes(file[-8:-4], "little")
    return file[:start], Reader(file[start:-8]).struct()


def closed(body, footer):
    last = footer if isinstance(footer, bytes) else written(STRUCT, footer)
    return body + last + len(last).to_bytes(4, "little") + b"PAR1"


def claims(path, value, file=PLAIN):
    """The file whose footer has another value at a path."""
    body, footer = opened(file)
    return closed(body, changed(footer, path, value))


def page(column, path, value, file=PLAIN):
    """The file whose first page of a column has another head; the bytes after it move."""
    metadata = pq.ParquetFile(io.BytesIO(file)).metadata.row_group(0).column(column)
    at = metadata.dictionary_page_offset or metadata.data_page_offset
    reader = Reader(file[at:])
    head = reader.struct()
    new = value if path is None else written(STRUCT, changed(head, path, value))
    size = reader.at
    # The page keeps its place: what a longer head needs is taken from its content.
    return (
        file[:at] + new + file[at + max(size, len(new)) :] if len(new) >= size else file[:at] + new + file[at + size :]
    )


def bits(file, column, by=5, dictionary=False):
    metadata = pq.ParquetFile(io.BytesIO(file)).metadata.row_group(0).column(column)
    start, data = metadata.dictionary_page_offset, metadata.data_page_offset
    at, end = (start, data) if dictionary else (data, (start or data) + metadata.total_compressed_size)
    return flipped(file, *range(at + 30, end, by))


for part, cut in {
    "its magic alone": PLAIN[:4],
    "twice its magic": b"PAR1PAR1",
    "a footer of no bytes": b"PAR1" + bytes(4) + b"PAR1",
    "half": PLAIN[: len(PLAIN) // 2],
    "all but the footer": opened(PLAIN)[0],
    "all but half of the footer": PLAIN[: -len(PLAIN) // 5],
    "all but the last byte": PLAIN[:-1],
    "all but the last magic": PLAIN[:-4],
    "all but the first page": PLAIN[:4] + PLAIN[200:],
    "the footer alone": b"PAR1" + PLAIN[len(opened(PLAIN)[0]) :],
}.items():
    case(f"Parquet, cut: {part}", cut, DAMAGED)
case("another magic at the start", b"PARX" + PLAIN[4:], "named .parquet, and does not begin as Parquet does")
case("another magic at the end", PLAIN[:-4] + b"PARX", DAMAGED)
case("encrypted", b"PARE" + PLAIN[4:-4] + b"PARE", "it is encrypted Parquet")
case("an encrypted footer", PLAIN[:-4] + b"PARE", DAMAGED)
case("a footer longer than the file", PLAIN[:-8] + b"\xff\xff\xff\x7f" + PLAIN[-4:], DAMAGED)
case("a footer of negative length", PLAIN[:-8] + b"\xff\xff\xff\xff" + PLAIN[-4:], DAMAGED)
case(
    "a footer one byte short",
    PLAIN[:-8] + (len(PLAIN) - 9 - len(opened(PLAIN)[0])).to_bytes(4, "little") + b"PAR1",
    DAMAGED,
)
case("a footer of zeros", closed(opened(PLAIN)[0], bytes(300)), DAMAGED)
case("a footer of junk", closed(opened(PLAIN)[0], NOISE[:300]), DAMAGED)
case("JSON lines named Parquet", GOOD, "named .parquet, and does not begin")
case("bits of the footer", flipped(PLAIN, *range(len(opened(PLAIN)[0]), len(PLAIN) - 8, 7)), DAMAGED)
case(
    "a list of 2^31 row groups",
    closed(*[opened(PLAIN)[0], changed(opened(PLAIN)[1], [4], b"\xfc" + b"\xff" * 4 + b"\x07")]),
    DAMAGED,
)
case("a schema nested in itself", claims([2, 0, 5], 2**31 - 1), DAMAGED)
case("a schema of negative width", claims([2, 0, 5], -1), DAMAGED)
case("10^5 groups in each other", lambda: closed(opened(PLAIN)[0], deep(10**5)), DAMAGED)
case("2^62 rows claimed", claims([3], 2**62), DAMAGED)
case("-1 rows claimed", claims([3], -1), DAMAGED)
case("fewer rows claimed than there are", claims([3], 3), DAMAGED)
case("2^62 rows in a row group", claims([4, 0, 3], 2**62), DAMAGED)
case("2^62 values in a column", claims([4, 0, 1, 1, 3, 5], 2**62), kept=ROWS)
case("-1 values in a column", claims([4, 0, 1, 1, 3, 5], -1), DAMAGED)
case("no row groups", claims([4], (STRUCT, [])), DAMAGED)
case("a column of 2^62 bytes", claims([4, 0, 1, 1, 3, 7], 2**62), DAMAGED)
case("a column of -1 bytes", claims([4, 0, 1, 1, 3, 7], -1), DAMAGED)
case("a column beyond the end", claims([4, 0, 1, 1, 3, 9], len(PLAIN) * 2), DAMAGED)
case("a column before the start", claims([4, 0, 1, 1, 3, 9], -5), DAMAGED)
case("a column in the footer", claims([4, 0, 1, 1, 3, 9], len(PLAIN) - 50), DAMAGED)
case("a codec that is none", claims([4, 0, 1, 1, 3, 4], 99), DAMAGED)
case("the wrong codec", claims([4, 0, 1, 1, 3, 4], 6), DAMAGED)
case("the wrong type", claims([4, 0, 1, 1, 3, 1], 1), DAMAGED)
case("a column of another name", claims([4, 0, 1, 1, 3, 3], (BINARY, [b"else"])), kept=ROWS)
case("a page of 2^31 - 1 bytes", page(1, [2], 2**31 - 1), DAMAGED)
case("a page of 2^31 - 1 compressed bytes", page(1, [3], 2**31 - 1), DAMAGED)
case("a page of -1 bytes", page(1, [2], -1), DAMAGED)
case("a page of 2^31 - 1 values", page(1, [5, 1], 2**31 - 1), DAMAGED)
case("a page of -1 values", page(1, [5, 1], -1), DAMAGED)
case("a page in no encoding", page(1, [5, 2], 63), DAMAGED)
case("a page of another kind", page(1, [1], 2), DAMAGED)
case("a page whose head is junk", page(1, None, NOISE[:40]), DAMAGED)
case("a page whose head is zeros", page(1, None, bytes(40)), DAMAGED)
case("a dictionary of 2^31 - 1 values", page(0, [7, 1], 2**31 - 1, CODED), DAMAGED)
case("a dictionary with other bits", bits(CODED, 0, dictionary=True), DAMAGED)
case("codes that the dictionary has not", bits(CODED, 0, by=1), DAMAGED)
case("texts whose lengths are wrong", bits(PLAIN, 0, by=3), DAMAGED)
case("a compressed page with other bits", bits(parquet(compression="zstd"), 1), DAMAGED)
case("a page that is not what its checksum says", flipped(CHECKED, CHECKED.index(b"answer 7")), DAMAGED)


def deep(levels):
    footer = opened(PLAIN)[1]
    root, *leaves = footer[2][1][1]
    group = {3: (I32, 1), 4: (BINARY, b"g"), 5: (I32, 1)}
    return changed(footer, [2], (STRUCT, [changed(root, [5], 4), *leaves, *[group] * levels, leaves[0]]))


case("no rows", lambda: parquet(table().slice(0, 0)), kept=0)
case("no columns", lambda: parquet(pa.table({})), "has no column 'group_id'")
case("other columns", lambda: parquet(pa.table({"rewards": [1.0], "group_id": [1]})), "Did you mean 'rewards'")
case(
    "a column that is there twice",
    lambda: parquet(pa.table([[1], [1], [1.0]], ["group_id", "group_id", "reward"])),
    "2 columns named 'group_id'",
)
case(
    "another column that is there twice",
    lambda: parquet(pa.table([[1], [1.0], [1], [2]], ["group_id", "reward", "x", "x"])),
    kept=1,
)
case(
    "10^4 columns",
    lambda: parquet(pa.table([[1]] * 10**4 + [[1.0]], [*(f"c{i}" for i in range(10**4 - 1)), "group_id", "reward"])),
    kept=1,
)


def typed(name, column, values, *words, kept=None):
    case(name, lambda: parquet(table(**{column: values})), *words, kept=kept)


typed("reward as text", "reward", ["1"] * ROWS, "column 'reward' holds")
typed("reward as lists", "reward", [[1.0]] * ROWS, "'reward', is a list in row 0", "--reward")
typed("reward as structs", "reward", [{"x": 1.0}] * ROWS, "'reward', is an object in row 0", "--reward x")
typed("reward as times", "reward", pa.array([1] * ROWS, pa.timestamp("us")), "column 'reward' holds")
typed("reward as nothing", "reward", pa.nulls(ROWS), kept=0)
typed("reward as true or false", "reward", [i % 2 == 0 for i in range(ROWS)], kept=ROWS)
typed("reward NaN", "reward", [float("nan")] * ROWS, "'reward' is NaN or infinite in", "row 0")
typed("source as lists", "source", [[1]] * ROWS, "column 'source' is lists", "expected ids")
typed("group_id with a point", "group_id", [0.5] * ROWS, "column 'group_id' holds", "expected integers or strings")
typed("group_id as lists", "group_id", [[1]] * ROWS, "column 'group_id' is list", "expected ids")
typed("group_id null once", "group_id", [*range(ROWS - 1), None], "row 39: column 'group_id' is null")
typed("group_id null", "group_id", pa.nulls(ROWS), "group_id")
typed("group_id as bytes", "group_id", [b"a"] * ROWS, kept=ROWS)
typed("group_id as words of a dictionary", "group_id", pa.array(["a"] * ROWS).dictionary_encode(), kept=ROWS)


@lambda make: PARQUET.update({"files of other types": Case(make, ("holds int64 and string",))})
def two_types(directory):
    pq.write_table(table(), directory / "a.parquet")
    pq.write_table(table(group_id=list(range(ROWS))), directory / "b.parquet")
    return [directory / "a.parquet", directory / "b.parquet"]


@lambda make: PARQUET.update({"files of other columns": Case(make, ("b.parquet has other columns",))})
def two_schemas(directory):
    pq.write_table(table(), directory / "a.parquet")
    pq.write_table(table(more=list(range(ROWS))), directory / "b.parquet")
    return [directory / "a.parquet", directory / "b.parquet"]
