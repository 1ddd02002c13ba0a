"""What a file is, by its first bytes, where it is no file of rollouts that can be read."""

from __future__ import annotations

WRITE = "write Parquet or JSON lines in the framework"
CONVERT = "docs/formats.md has the lines that convert it where you trust it"
PIPE = "FILE | grpokit filter - -o OUT reads it"
# Where the bytes are, the bytes, what the file is and what to do.
KNOWN = (
    (0, b"PK", f"it is pickled (.pt) or zipped, and reading it would run code; {CONVERT}"),
    (0, b"\x80", f"it is pickled (.pkl), and reading it would run code; {CONVERT}"),
    (0, b"PARE", f"it is encrypted Parquet; {WRITE}, not encrypted"),
    (
        0,
        b"ARROW1",
        "it is an Arrow file (Feather); pyarrow.feather.read_table and pyarrow.parquet.write_table convert it",
    ),
    (
        0,
        b"\xff\xff\xff\xff",
        "it is an Arrow stream; pyarrow.ipc.open_stream and pyarrow.parquet.write_table convert it",
    ),
    (0, b"\x93NUMPY", f"it is a NumPy array; {WRITE}"),
    (0, b"BZh", f"it is compressed with bzip2; bzcat {PIPE}"),
    (0, b"\xfd7zXZ", f"it is compressed with xz; xzcat {PIPE}"),
    (0, b"\x04\x22\x4d\x18", f"it is compressed with lz4; lz4cat {PIPE}"),
    (257, b"ustar", "it is a tar archive; unpack it"),
    (0, b"<", "it is HTML or XML; is it the page of an error in place of the file?"),
    *(
        (0, mark, f"it is UTF-16 or UTF-32; iconv -t UTF-8 {PIPE}")
        for mark in (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
    ),
    *((at, b"\0", f"it is UTF-16 or UTF-32 without a mark, or no text; iconv -t UTF-8 {PIPE}") for at in (0, 1)),
)
LONGEST = 262


def why_not(start: bytes) -> str | None:
    """Why a file that begins so is not read, as far as its first `LONGEST` bytes say."""
    return next((reason for at, magic, reason in KNOWN if start[at:].startswith(magic)), None)
