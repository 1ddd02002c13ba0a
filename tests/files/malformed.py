"""Files that cannot be meant, made by script: what each is, and what the message about it must say.

`JSON_LINES` and `PLACES` are name → Case, as `PARQUET` in malformed_parquet is. A case makes files in an empty
directory and gives what the command is called with; where `kept` is a number the file is fine: so many rows are kept.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Case:
    make: Callable[[Path], Any]
    words: tuple[str, ...] = ()
    kept: int | None = None


GOOD = b'{"group_id": "a", "reward": 1}\n{"group_id": "a", "reward": 0}\n'
JSON_LINES: dict[str, Case] = {}
PLACES: dict[str, Case] = {}


def lines(name, content, *words, kept=None, file="in.jsonl"):
    def make(directory):
        (directory / file).write_bytes(content() if callable(content) else content)
        return directory / file

    JSON_LINES[name] = Case(make, (file, *words), kept)


def second(name, line, *words, kept=None):
    """A line after two that are fine."""
    lines(name, GOOD + line + b"\n", *(words or ("line 3", "Every line must be one JSON object")), kept=kept)


# Lines that are broken.
second("half a line", b'{"group_id": "a", "rew', "line 3: it is no JSON (Unterminated string")
second("a list", b"[1, 2]", "line 3: it holds list, not an object")
second("a number", b"17", "line 3: it holds int")
second("a string", b'"text"', "line 3: it holds str")
second("null", b"null", "line 3: it holds NoneType")
second("trailing garbage", b'{"group_id": "a", "reward": 1} ok', "line 3: it is no JSON (Extra data")
second("two objects on a line", b'{"group_id": "a", "reward": 1}{"group_id": "a", "reward": 1}', "line 3", "Extra data")
second("single quotes", b"{'group_id': 'a', 'reward': 1}", "line 3", "double quotes")
second("keys without quotes", b'{group_id: "a", reward: 1}', "line 3", "double quotes")
second("a comma too many", b'{"group_id": "a", "reward": 1,}', "line 3")
second("a comment", b'{"group_id": "a", "reward": 1} // fine', "line 3")
second("a number with a leading zero", b'{"group_id": "a", "reward": 01}', "line 3")
second("a number without digits", b'{"group_id": "a", "reward": 1.}', "line 3")
second("-NaN", b'{"group_id": "a", "reward": -NaN}', "line 3")
second("nan in small letters", b'{"group_id": "a", "reward": nan}', "line 3")
second("a tab in a string", b'{"group_id": "a\t", "reward": 1}', "line 3", "control character")
second("a NUL in a string", b'{"group_id": "a\0", "reward": 1}', "line 3", "control character")
second("a NUL between", b'{"group_id": "a",\0 "reward": 1}', "line 3")
second("a vertical tab for a line", b"\x0b", "line 3: it is no JSON")
second("invalid UTF-8 in a needed field", b'{"group_id": "\xff", "reward": 1}', "line 3: byte 15 is not UTF-8")
second("invalid UTF-8 in another field", b'{"group_id": "a", "reward": 1, "x": "\xc3"}', "line 3: byte 38 is not UTF-8")
second("invalid UTF-8 in a key", b'{"group_id": "a", "reward": 1, "\xed\xa0\x80": 1}', "line 3", "is not UTF-8")
second("half a surrogate pair in a needed field", b'{"group_id": "\\ud800", "reward": 1}', "line 3: it has half of")
second("half a surrogate pair in a key", b'{"group_id": "a", "reward": 1, "\\udc00": 1}', "line 3: it has half of")
second("half a surrogate pair elsewhere", b'{"group_id": "a", "reward": 1, "x": "\\ud800"}', kept=3)
second("a bracket that is never closed", b"[" * 100_000, "line 3", "nested too deeply")
second("a conflict's mark", b"<<<<<<< HEAD", "line 3")
second("a mark in the middle", b'\xef\xbb\xbf{"group_id": "a", "reward": 1}', "line 3", "BOM")

# Values of the wrong type.
second("reward as text", b'{"group_id": "a", "reward": "1.0"}', "line 3: column 'reward' holds text after a number")
second("reward as a list", b'{"group_id": "a", "reward": [1]}', "line 3: column 'reward' holds a list or an object")
second("reward as an object", b'{"group_id": "a", "reward": {"x": 1}}', "line 3", "holds a list or an object")
second("reward as true", b'{"group_id": "a", "reward": true}', "line 3", "holds true or false after a number")
second("group_id as a number", b'{"group_id": 1, "reward": 1}', "line 3: column 'group_id' holds a number after text")
second("group_id as a list", b'{"group_id": ["a"], "reward": 1}', "line 3: column 'group_id' holds a list or an object")
second("group_id null", b'{"group_id": null, "reward": 1}', "line 3: column 'group_id' is null")
second("group_id missing", b'{"reward": 1}', "line 3: column 'group_id' is null")
second(
    "reward beyond all numbers", b'{"group_id": "a", "reward": 1e999}', "line 3: 'reward' is NaN or infinite in 1 rows"
)
second("a reward of 10^6 digits", b'{"group_id": "a", "reward": ' + b"9" * 10**6 + b"}", "line 3", "beyond 64 bits")
lines("rewards all text", GOOD.replace(b"1", b'"1"').replace(b"0", b'"0"'), "column 'reward' holds")
lines(
    "rewards all lists",
    GOOD.replace(b"1", b"[1]").replace(b"0", b"[0]"),
    "line 1",
    "'reward', is a list in row 0",
    "--reward",
)
lines("rewards of which no list is", GOOD.replace(b"1", b"[1]").replace(b"0", b'["x"]'), "column 'reward' holds")
lines(
    "group_id as numbers with a point",
    GOOD.replace(b'"a"', b"1.5"),
    "column 'group_id' holds",
    "expected integers or strings",
)
lines("group_id as true", GOOD.replace(b'"a"', b"true"), "column 'group_id' holds", "expected integers or strings")
lines("group_id beyond 64 bits", GOOD.replace(b'"a"', b"18446744073709551616"), "line 1", "beyond 64 bits")
lines("no group_id", b'{"prompt_id": "a", "reward": 1}\n', "has no column 'group_id'", "--column group_id=NAME")
lines("no reward in a line without fields", b"{}\n", "(it has: no column)")
lines(
    "numbers, then text a block later",
    b'{"group_id": 1, "reward": 0.5}\n' * 200_000 + b'{"group_id": "x", "reward": 0.5}\n',
    "line 200001: column 'group_id' holds text after a number",
)

# Lines that are fine, whatever they look like.
second("a key that comes twice", b'{"group_id": "b", "reward": "x", "group_id": "a", "reward": 1}', kept=3)
second("NaN elsewhere", b'{"group_id": "a", "reward": 1, "kl": [NaN, -Infinity]}', kept=3)
second("a number of 10^6 digits elsewhere", b'{"group_id": "a", "reward": 1, "x": ' + b"9" * 10**6 + b"}", kept=3)
second(
    "nested 10^5 deep elsewhere", b'{"group_id": "a", "reward": 1, "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", kept=3
)
second("10^5 fields", json.dumps({"group_id": "a", "reward": 1} | {f"x{i}": i for i in range(10**5)}).encode(), kept=3)
second("escapes in keys", b'{"group\\u005fid": "a", "re\\u0077ard": 1}', kept=3)
second("-0 and exponents", b'{"group_id": "a", "reward": -0}\n{"group_id": "a", "reward": -0.0E+00}', kept=4)
second("integers and numbers with a point", b'{"group_id": "a", "reward": 0.5}', kept=3)
lines("a mark", b"\xef\xbb\xbf" + GOOD, kept=2)
lines("carriage returns and newlines", GOOD.replace(b"\n", b"\r\n"), kept=2)
lines("blank lines", b"\n \t\r\n\n" + GOOD + b"\n\n", kept=2)
lines("no newline at the end", GOOD[:-1], kept=2)
lines("10^6 digits in the first line", b'{"group_id": "a", "reward": 1, "x": ' + b"1" * 10**6 + b"}\n" + GOOD, kept=3)
lines("rewards all true or false", GOOD.replace(b"1", b"true").replace(b"0", b"false"), kept=2)

# Whole files that are no JSON lines.
lines("empty", b"", "it is empty")
lines("blank lines alone", b"\n\n \r\n", "it has no lines")
lines("a mark alone", b"\xef\xbb\xbf", "it has no lines")
lines("UTF-16", GOOD.decode().encode("utf-16"), "it is UTF-16 or UTF-32; iconv")
lines("UTF-16 without a mark", GOOD.decode().encode("utf-16-le"), "it is UTF-16 or UTF-32 without a mark")
lines("UTF-16, the other way round", GOOD.decode().encode("utf-16-be"), "it is UTF-16 or UTF-32 without a mark")
lines("UTF-32", GOOD.decode().encode("utf-32"), "it is UTF-16 or UTF-32; iconv")
lines("Latin-1", '{"group_id": "é", "reward": 1}\n'.encode("latin-1"), "line 1: byte 15 is not UTF-8")
lines("carriage returns alone", GOOD.replace(b"\n", b"\r"), "line 1", "not with \\r alone")
lines("one array", b"[" + GOOD.strip().replace(b"\n", b",") + b"]\n", "line 1: it holds list", "jq -c '.[]'")
lines("an array over lines", b"[\n" + GOOD.strip().replace(b"\n", b",\n") + b"\n]\n", "line 1", "jq -c '.[]'")
lines("printed prettily", json.dumps({"group_id": "a", "reward": 1}, indent=2).encode(), "line 1", "jq -c .")
lines("comma-separated", b"group_id,reward\na,1\n", "line 1: it is no JSON")
lines("YAML", b"- group_id: a\n  reward: 1\n", "line 1: it is no JSON")
lines("HTML", b"<!DOCTYPE html><html>not found</html>", "it is HTML")
lines("nested 10^5 deep in the first line", b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", "line 1: it is nested")
lines("zeros", bytes(10_000), "or no text")
lines("random bytes", lambda: np.random.default_rng(0).bytes(10_000), "line 1: byte 2 is not UTF-8")
lines("pickled", lambda: pickle.dumps([{"group_id": 1}]), "it is pickled", file="in.pkl")
lines("a NumPy array", lambda: saved(np.save, np.zeros(3)), "it is a NumPy array", file="in.npy")
lines("bzip2", lambda: bz2.compress(GOOD), "bzcat FILE | grpokit filter -")
lines("xz", lambda: lzma.compress(GOOD), "xzcat FILE | grpokit filter -")
lines(
    "an Arrow file", lambda: saved(lambda f, t: pa.feather.write_feather(t, f), pa.table({"a": [1]})), "pyarrow.feather"
)
lines("a tar archive", lambda: saved(archived, GOOD), "it is a tar archive", file="in.tar")
lines("a zip archive", lambda: saved(zipped, GOOD), "zipped", file="in.zip")


def saved(save, thing):
    sink = io.BytesIO()
    save(sink, thing)
    return sink.getvalue()


def archived(sink, content):
    with tarfile.open(fileobj=sink, mode="w") as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def zipped(sink, content):
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.jsonl", content)


@lambda make: lines("an Arrow stream", make, "it is an Arrow stream")
def stream():
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pa.schema([("a", pa.int64())])) as writer:
        writer.write_table(pa.table({"a": [1]}))
    return sink.getvalue()


# Compressed files.
def zstd(content):
    return pa.compress(content, "zstd", asbytes=True)


GZIP, NOISE = gzip.compress(GOOD, mtime=0), np.random.default_rng(1).integers(33, 90, 60_000).astype(np.uint8).tobytes()
LONG = GOOD + b'{"group_id": "b", "reward": 1, "x": "' + NOISE.replace(b'"', b" ").replace(b"\\", b" ") + b'"}\n'
lines("gzip members, one after another", GZIP + GZIP, kept=4)
lines("zstd frames, one after another", lambda: zstd(GOOD) + zstd(GOOD), kept=4)
lines("gzip cut in its head", GZIP[:7], "cannot be read")
lines("gzip cut in its body", gzip.compress(LONG)[:20_000], "cannot be read")
lines("gzip without its end", GZIP[:-8], "cannot be read")
lines("gzip with a wrong checksum", GZIP[:-8] + bytes(4) + GZIP[-4:], "cannot be read")
lines("gzip with a wrong length", GZIP[:-4] + b"\xff" * 4, "cannot be read")
lines("gzip and then something", GZIP + b"garbage", "cannot be read")
lines("gzip of another method", GZIP[:2] + b"\x07" + GZIP[3:], "cannot be read")
lines("gzip of nothing", gzip.compress(b""), "it has no lines")
lines("zstd cut", lambda: zstd(LONG)[:20_000], "cannot be read")
lines("zstd with a flipped bit", lambda: flipped(zstd(LONG), 30_000, 5), "cannot be read", "in.jsonl")
lines("zstd that claims 2^60 bytes", b"\x28\xb5\x2f\xfd\xe0" + (2**60).to_bytes(8, "little") + b"\x01\0\0", "cannot be")
lines("zstd with a window of a terabyte", b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\0\0", "cannot be read")


def flipped(content, *places):
    changing = bytearray(content)
    for place in places:
        changing[place] ^= 0x10
    return bytes(changing)


# Places that are no files.
def place(name, make, *words):
    PLACES[name] = Case(make, words)


def link(directory, target):
    (directory / "link.jsonl").symlink_to(target)
    return directory / "link.jsonl"


def pipe(directory):
    os.mkfifo(directory / "pipe.jsonl")
    return directory / "pipe.jsonl"


def parquet(directory):
    pq.write_table(pa.table({"group_id": [1], "reward": [1.0]}), directory / "in.parquet")
    return directory / "in.parquet"


def listening(directory):
    path = directory / "socket.jsonl"
    with socket.socket(socket.AF_UNIX) as end:
        # The path of a socket may have about a hundred bytes; its directory's number leads there.
        folder = os.open(directory, os.O_RDONLY)
        end.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
    return path


place("nothing", lambda d: d / "no.jsonl", "no.jsonl", "it is not there")
place("no pattern's match", lambda d: d / "*.jsonl", "matched by no file")
place("an empty directory", lambda d: d, "without Parquet or JSON-lines files")
place("a name that is too long", lambda d: d / ("x" * 300), "File name too long")
place("a link to nothing", lambda d: link(d, d / "gone"), "it is a link that leads nowhere")
place("a link to itself", lambda d: link(d, d / "link.jsonl"), "link.jsonl cannot be read")
place("a pipe", pipe, "pipe.jsonl", "it is a pipe or a device", "give -")
place("a socket", listening, "socket.jsonl", "it is a pipe or a device")
place("/dev/null", lambda _: Path("/dev/null"), "it is a pipe or a device")
place("/dev/zero", lambda _: Path("/dev/zero"), "it is a pipe or a device")
place("a file for a directory", lambda d: (d / "a").write_text("") and None or d / "a" / "b.jsonl", "it is not there")
place("two kinds", lambda d: [parquet(d), JSON_LINES["a mark"].make(d)], "expected files of one kind")
