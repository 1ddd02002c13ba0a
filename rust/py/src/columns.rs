//! What a caller may give as a column, read as what the core needs.

use crate::arrow::{ArrowColumn, is_integer, strings_of, wrong_type};
use crate::calls::{detached, error, raise};
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_buffer::ScalarBuffer;
use arrow_schema::DataType;
use grpokit_core::keys::{BLOCK, Codes, Factorizer, Keys, check_rows, factorize_bytes, factorize_integers};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

/// A column of numbers that nobody can change: Arrow's, or a copy. (A borrowed NumPy array may be written to between
/// two calls, and what is read late would not be what was processed.)
pub enum Numbers {
    /// Of an Arrow buffer, which counts its references.
    Arrow(ScalarBuffer<f64>),
    /// Copied or converted.
    Own(Vec<f64>),
}

impl AsRef<[f64]> for Numbers {
    fn as_ref(&self) -> &[f64] {
        match self {
            Self::Arrow(buffer) => buffer,
            Self::Own(values) => values,
        }
    }
}

/// Rewards or gates: the numbers, and which rows have one (empty: all).
pub fn floats(column: &str, data: &Bound<'_, PyAny>) -> PyResult<(Numbers, Vec<bool>)> {
    let py = data.py();
    if let Ok((values, scored)) = data.extract::<(PyReadonlyArray1<'_, f64>, PyReadonlyArray1<'_, bool>)>() {
        return Ok((Numbers::Own(values.as_array().to_vec()), scored.as_array().to_vec()));
    }
    if let Ok(arrow) = data.cast::<ArrowColumn>() {
        let (values, scored) = arrow.get().floats(py, column)?;
        return Ok((Numbers::Arrow(values), scored));
    }
    if let Ok(array) = data.extract::<PyReadonlyArray1<'_, f64>>() {
        return Ok((Numbers::Own(array.as_array().to_vec()), Vec::new()));
    }
    let list = match data.cast::<PyList>() {
        Ok(list) => list.clone(),
        Err(_) => data.call_method0("tolist")?.cast_into::<PyList>()?,
    };
    let (mut values, mut scored) = (Vec::with_capacity(list.len()), Vec::new());
    for (row, item) in list.iter().enumerate() {
        if item.is_none() {
            scored.resize(row, true);
            scored.push(false);
            values.push(0.0);
            continue;
        }
        values.push(item.extract().map_err(|_| {
            error(py, "column_type", |context| {
                context.set_item("column", column)?;
                context.set_item("given", format!("{} in row {row}", type_name(&item)))?;
                context.set_item("expected", "numbers, or None where there is none")
            })
        })?);
    }
    if !scored.is_empty() {
        scored.resize(values.len(), true);
    }
    Ok((Numbers::Own(values), scored))
}

/// A column of numbers that may be null, as (N,) float64 and which of them are there, (N,) bool.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn numbers<'py>(
    column: &str,
    data: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<bool>>)> {
    let py = data.py();
    let (values, mut scored) = floats(column, data)?;
    scored.resize(values.as_ref().len(), true);
    Ok((PyArray1::from_slice(py, values.as_ref()), PyArray1::from_vec(py, scored)))
}

/// Numbers of tokens, in a contiguous array.
pub enum Lengths<'py> {
    /// As NumPy mostly has them.
    Wide(PyReadonlyArray1<'py, i64>),
    /// As other libraries do.
    Narrow(PyReadonlyArray1<'py, i32>),
}

/// Lengths from a contiguous array of int32 or int64.
pub fn lengths<'py>(data: &Bound<'py, PyAny>) -> PyResult<Lengths<'py>> {
    match data.extract() {
        Ok(array) => Ok(Lengths::Narrow(array)),
        Err(_) => Ok(Lengths::Wide(data.extract()?)),
    }
}

fn type_name(item: &Bound<'_, PyAny>) -> String {
    item.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string())
}

/// The groups of an id column: Arrow, NumPy (integers, `U`, `S`, objects) or a list.
pub fn codes(data: &Bound<'_, PyAny>, column: &str, threads: usize) -> PyResult<Codes> {
    let py = data.py();
    if let Ok(arrow) = data.cast::<ArrowColumn>() {
        return arrow_codes(py, arrow.get(), column, threads);
    }
    if let Ok(list) = data.cast::<PyList>() {
        let list = list.as_ptr();
        // SAFETY: a row that has gone, since another thread shortened the list, is answered with null and an error.
        return object_codes(py, data.len()?, column, threads, |row| unsafe {
            ffi::PyList_GetItem(list, row.cast_signed())
        });
    }
    if let Ok(ids) = data.extract::<PyReadonlyArray1<'_, i64>>() {
        let ids = ids.as_slice()?;
        return detached(py, threads, |context| factorize_integers(ids, context));
    }
    if let Ok(objects) = data.extract::<PyReadonlyArray1<'_, Py<PyAny>>>() {
        let ids = objects.as_slice()?;
        return object_codes(py, ids.len(), column, threads, |row| ids[row].as_ptr());
    }
    // `U` and `S` arrays: every id has the same number of bytes, and equal ids have equal bytes.
    let (rows, width) = (data.len()?, data.getattr("itemsize")?.extract()?);
    let bytes = data.call_method0("tobytes")?.cast_into::<PyBytes>()?;
    let bytes = bytes.as_bytes();
    let keys = Fixed { bytes, width, rows };
    detached(py, threads, |context| factorize_bytes(&keys, context))
}

struct Fixed<'a> {
    bytes: &'a [u8],
    width: usize,
    rows: usize,
}

impl Keys for Fixed<'_> {
    fn len(&self) -> usize {
        self.rows
    }

    fn fill<'a>(&'a self, rows: std::ops::Range<usize>, block: &mut Vec<&'a [u8]>) {
        block.extend(rows.map(|row| &self.bytes[row * self.width..(row + 1) * self.width]));
    }
}

/// Rows whose ids are copied before the interpreter is given away to look them up. Giving it away for less work than
/// this would starve other threads: they wait five milliseconds before they ask for it, and begin anew at each release.
const CHUNK: usize = 1 << 16;

/// Some ids end to end, our own.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Chunk {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn push(&mut self, id: &[u8]) {
        self.bytes.extend_from_slice(id);
        self.ends.push(self.bytes.len());
    }

    /// Whether the last id is this one.
    fn ends_with(&self, id: &[u8]) -> bool {
        let end = self.ends.len().checked_sub(2).map_or(0, |at| self.ends[at]);
        !self.ends.is_empty() && &self.bytes[end..] == id
    }
}

/// Ids that are looked at to see how the rest lie.
const SAMPLE: usize = 128;

impl Keys for Chunk {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn fill<'a>(&'a self, rows: std::ops::Range<usize>, block: &mut Vec<&'a [u8]>) {
        let mut start = if rows.start == 0 { 0 } else { self.ends[rows.start - 1] };
        block.extend(self.ends[rows].iter().map(|&end| &self.bytes[std::mem::replace(&mut start, end)..end]));
    }
}

/// The interpreter is held while ids are read, and given away while they are looked up. `item` gives borrowed
/// references.
fn object_codes(
    py: Python<'_>,
    rows: usize,
    column: &str,
    threads: usize,
    item: impl Fn(usize) -> *mut ffi::PyObject,
) -> PyResult<Codes> {
    check_rows(rows).map_err(|failure| raise(py, &failure))?;
    // SAFETY: `item` gives a reference that its container holds, and the interpreter is not given away in between.
    let bound = |row: usize| unsafe { Bound::from_borrowed_ptr_or_err(py, item(row)) };
    let bytes_expected = rows > 0 && bound(0)?.is_instance_of::<PyBytes>();
    if rows > 0 && !bytes_expected && !bound(0)?.is_instance_of::<PyString>() {
        let ids = (0..rows).map(|row| integer(&bound(row)?, row, column)).collect::<PyResult<Vec<_>>>()?;
        return detached(py, threads, |context| factorize_integers(&ids, context));
    }
    // SAFETY: as above.
    let same = |row: &usize| unsafe { utf8(item(*row)) == utf8(item(row - 1)) };
    // Where most ids are that of the row before, each run of one is looked up once.
    let in_runs = !bytes_expected && (1..rows.min(SAMPLE)).filter(same).count() * 2 > rows.min(SAMPLE);
    PyErr::take(py);
    let mut groups: Factorizer = Factorizer::new(if in_runs { rows / 4 } else { rows });
    let (mut chunk, mut runs) = (Chunk::default(), Vec::new());
    for start in (0..rows).step_by(CHUNK) {
        chunk.clear();
        for row in start..(start + CHUNK).min(rows) {
            // SAFETY: as above; the bytes are copied at once.
            match unsafe { utf8(item(row)) } {
                Some(bytes) if !bytes_expected => {
                    if in_runs {
                        if chunk.ends_with(bytes) {
                            continue;
                        }
                        runs.push(row as u32);
                    }
                    chunk.push(bytes);
                }
                _ => chunk.push(other_bytes(py, &bound(row)?, row, column, bytes_expected)?.as_bytes()),
            }
        }
        detached(py, threads, |context| groups.extend_all(&chunk, context))?;
        py.check_signals()?;
    }
    let codes = groups.finish();
    Ok(if in_runs { of_runs(codes, &runs, rows) } else { codes })
}

/// The codes of rows from those of runs of rows, of which the first rows are given.
fn of_runs(mut codes: Codes, runs: &[u32], rows: usize) -> Codes {
    for first in &mut codes.first {
        *first = runs[*first as usize];
    }
    let mut all = Vec::with_capacity(rows);
    for (at, &code) in codes.codes.iter().enumerate() {
        let end = runs.get(at + 1).map_or(rows, |&next| next as usize);
        all.resize(end, code);
    }
    Codes { codes: all, first: codes.first }
}

/// The UTF-8 of a str, which the str owns; None, with a Python error set, for what is not one.
///
/// # Safety
/// `item` is null or a live object, and the interpreter is held while the bytes are in use.
unsafe fn utf8<'a>(item: *mut ffi::PyObject) -> Option<&'a [u8]> {
    if item.is_null() {
        return None;
    }
    let mut size = 0;
    // SAFETY: the caller holds the interpreter and the object.
    let data = unsafe { ffi::PyUnicode_AsUTF8AndSize(item, &raw mut size) };
    // SAFETY: a result that is not null points to `size` bytes, which live as long as the str.
    (!data.is_null()).then(|| unsafe { std::slice::from_raw_parts(data.cast(), size.unsigned_abs()) })
}

/// A `bytes` object, where the first id is one: "a" and b"a" are different ids, and would have equal bytes.
fn other_bytes<'a, 'py>(
    py: Python<'py>,
    item: &'a Bound<'py, PyAny>,
    row: usize,
    column: &str,
    bytes_expected: bool,
) -> PyResult<&'a Bound<'py, PyBytes>> {
    let failure = PyErr::take(py);
    match item.cast::<PyBytes>() {
        Ok(bytes) if bytes_expected => Ok(bytes),
        _ if failure.is_some() && item.is_instance_of::<PyString>() => Err(error(py, "bad_keys", |context| {
            context.set_item("column", column)?;
            context.set_item("given", format!("a str that is not valid Unicode in row {row}"))
        })),
        _ => Err(bad_key(item, row, column)),
    }
}

fn integer(item: &Bound<'_, PyAny>, row: usize, column: &str) -> PyResult<i64> {
    if item.is_instance_of::<pyo3::types::PyFloat>() {
        return Err(bad_key(item, row, column));
    }
    item.extract().map_err(|_| bad_key(item, row, column))
}

fn bad_key(item: &Bound<'_, PyAny>, row: usize, column: &str) -> PyErr {
    error(item.py(), if item.is_none() { "null_key" } else { "bad_keys" }, |context| {
        context.set_item("column", column)?;
        context.set_item("given", format!("{} in row {row}", type_name(item)))
    })
}

fn arrow_codes(py: Python<'_>, data: &ArrowColumn, column: &str, threads: usize) -> PyResult<Codes> {
    data.refuse_nulls(py, column)?;
    if is_integer(data.data_type()) {
        let ids = data.integers(py, column)?;
        return detached(py, threads, |context| factorize_integers(&ids, context));
    }
    if let Some(keys) = data.strings() {
        return detached(py, threads, |context| factorize_bytes(&keys, context));
    }
    if matches!(data.data_type(), DataType::Dictionary(..)) {
        return dictionary_codes(py, data, column, threads);
    }
    Err(wrong_type(py, column, data.data_type(), "integers or strings"))
}

/// Only the dictionaries' entries are looked up, chunk by chunk: an entry may stand twice, and differ between chunks.
fn dictionary_codes(py: Python<'_>, data: &ArrowColumn, column: &str, threads: usize) -> PyResult<Codes> {
    let mut entries: Factorizer = Factorizer::new(1024);
    let (mut maps, mut seen) = (Vec::new(), 0);
    for chunk in &data.chunks {
        let values = chunk.as_any_dictionary().values();
        let numbers = ArrowColumn::of(values).integers(py, column).ok();
        let numbers = numbers.map(|numbers| numbers.iter().map(|id| id.to_be_bytes().to_vec()).collect());
        let text: Option<Vec<Vec<u8>>> = numbers.or_else(|| {
            strings_of(values).map(|keys| {
                let mut block = Vec::new();
                keys.fill(0..values.len(), &mut block);
                block.into_iter().map(<[u8]>::to_vec).collect()
            })
        });
        let Some(text) = text else {
            return Err(wrong_type(py, column, data.data_type(), "integers or strings"));
        };
        for block in text.chunks(BLOCK) {
            entries.extend(&block.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        maps.push(seen);
        seen += values.len();
    }
    let entries = entries.finish();
    let mut ids = Vec::with_capacity(data.chunks.iter().map(|chunk| chunk.len()).sum());
    for (chunk, start) in data.chunks.iter().zip(maps) {
        let keys = chunk.as_any_dictionary().normalized_keys();
        ids.extend(keys.into_iter().map(|key| i64::from(entries.codes[start + key])));
    }
    detached(py, threads, |context| factorize_integers(&ids, context))
}
