//! Tables through the Arrow C stream: whatever library holds them, without a copy.

use crate::calls::error;
use arrow_array::cast::AsArray;
use arrow_array::ffi_stream::{ArrayStreamReader, FFI_ArrowArrayStream, RecordBatchStreamReader};
use arrow_array::types::{
    ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayReader, ArrayRef, GenericListArray, OffsetSizeTrait, RecordBatch};
use arrow_buffer::{NullBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use grpokit_core::keys::Keys;
use numpy::PyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyList};
use std::ops::Range;

/// A table read from an object with `__arrow_c_stream__`.
#[pyclass(frozen, module = "grpokit._native")]
pub struct Table {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

#[pymethods]
impl Table {
    /// Reads the stream to its end; the buffers stay the exporter's.
    #[new]
    fn new(data: &Bound<'_, PyAny>) -> PyResult<Self> {
        let reader = RecordBatchStreamReader::try_new(stream(data)?).map_err(failed)?;
        let schema = arrow_array::RecordBatchReader::schema(&reader);
        let batches = reader.collect::<Result<_, _>>().map_err(failed)?;
        Ok(Self { schema, batches })
    }

    /// The names of the columns.
    #[getter]
    fn names(&self) -> Vec<&str> {
        self.schema.fields().iter().map(|field| field.name().as_str()).collect()
    }

    /// A column, or None where the table has none of that name.
    fn column(&self, name: &str) -> Option<ArrowColumn> {
        let (at, field) = self.schema.column_with_name(name)?;
        let chunks = self.batches.iter().map(|batch| batch.column(at).clone()).filter(|chunk| !chunk.is_empty());
        Some(ArrowColumn { name: name.into(), data_type: field.data_type().clone(), chunks: chunks.collect() })
    }

    fn __len__(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

fn stream(data: &Bound<'_, PyAny>) -> PyResult<FFI_ArrowArrayStream> {
    let capsule = data.call_method0("__arrow_c_stream__")?;
    let capsule = capsule.cast::<PyCapsule>()?;
    let stream = capsule.pointer_checked(Some(c"arrow_array_stream"))?;
    // SAFETY: the capsule's name says that it holds an ArrowArrayStream; from_raw moves it out and leaves a released
    // one behind, as the C stream interface asks of a consumer.
    Ok(unsafe { FFI_ArrowArrayStream::from_raw(stream.as_ptr().cast()) })
}

fn failed(failure: ArrowError) -> PyErr {
    PyValueError::new_err(failure.to_string())
}

/// One column of a table, in the chunks in which it came.
#[pyclass(frozen, module = "grpokit._native")]
pub struct ArrowColumn {
    name: String,
    data_type: DataType,
    pub chunks: Vec<ArrayRef>,
}

#[pymethods]
impl ArrowColumn {
    /// A series: a stream of arrays that are not the columns of a table.
    #[new]
    fn new(data: &Bound<'_, PyAny>) -> PyResult<Self> {
        let reader = ArrayStreamReader::try_new(stream(data)?).map_err(failed)?;
        let data_type = reader.field().data_type().clone();
        let name = reader.field().name().clone();
        Ok(Self { name, data_type, chunks: reader.collect::<Result<_, _>>().map_err(failed)? })
    }

    fn __len__(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    /// The name of its Arrow type.
    #[getter]
    fn dtype(&self) -> String {
        self.data_type.to_string()
    }

    /// As a contiguous array of int64; a null, or a type that is not whole numbers, is an error that names the column.
    #[pyo3(name = "integers")]
    fn as_integers<'py>(&self, py: Python<'py>, column: &str) -> PyResult<Bound<'py, PyArray1<i64>>> {
        Ok(PyArray1::from_slice(py, &self.integers(py, column)?))
    }

    /// The values of some rows as Python objects: str, bytes, int, float, bool or None.
    fn take<'py>(&self, py: Python<'py>, rows: Vec<usize>) -> PyResult<Bound<'py, PyList>> {
        let ends = ends(&self.chunks);
        let readers: Vec<_> = self.chunks.iter().map(|chunk| Reader::new(chunk, &self.name)).collect();
        let values = rows.into_iter().map(|row| {
            let chunk = ends.partition_point(|&end| end <= row);
            let Some(reader) = readers.get(chunk) else {
                return Err(PyValueError::new_err(format!("there is no row {row}")));
            };
            reader.value(py, row + reader.array.len() - ends[chunk])
        });
        PyList::new(py, values.collect::<PyResult<Vec<_>>>()?)
    }

    /// All values as Python objects.
    fn to_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.take(py, (0..self.__len__()).collect())
    }

    /// The names of its fields, where it holds structs.
    fn fields(&self) -> Vec<&str> {
        match &self.data_type {
            DataType::Struct(fields) => fields.iter().map(|field| field.name().as_str()).collect(),
            _ => Vec::new(),
        }
    }

    /// A field of its structs, or None where they have none of that name.
    fn field(&self, name: &str) -> Option<Self> {
        let DataType::Struct(fields) = &self.data_type else { return None };
        let (_, field) = fields.find(name)?;
        let column = |chunk: &ArrayRef| chunk.as_struct().column_by_name(name).cloned();
        let chunks = self.chunks.iter().map(column).collect::<Option<_>>()?;
        Some(Self { name: name.into(), data_type: field.data_type().clone(), chunks })
    }

    /// The first rows that are null, at most five, and how many there are.
    pub fn nulls(&self) -> (Vec<usize>, usize) {
        let (mut rows, mut count, mut start) = (Vec::new(), 0, 0);
        for chunk in &self.chunks {
            if let Some(nulls) = chunk.logical_nulls().filter(|nulls| nulls.null_count() > 0) {
                count += nulls.null_count();
                let missing = 5 - rows.len();
                rows.extend((0..chunk.len()).filter(|&i| nulls.is_null(i)).take(missing).map(|i| start + i));
            }
            start += chunk.len();
        }
        (rows, count)
    }
}

fn ends(chunks: &[ArrayRef]) -> Vec<usize> {
    chunks
        .iter()
        .scan(0, |end, chunk| {
            *end += chunk.len();
            Some(*end)
        })
        .collect()
}

/// Calls a macro with the Arrow type behind a numeric `DataType`.
macro_rules! numeric {
    ($data_type:expr, $then:ident, $otherwise:expr) => {
        match $data_type {
            DataType::Int8 => $then!(Int8Type),
            DataType::Int16 => $then!(Int16Type),
            DataType::Int32 => $then!(Int32Type),
            DataType::Int64 => $then!(Int64Type),
            DataType::UInt8 => $then!(UInt8Type),
            DataType::UInt16 => $then!(UInt16Type),
            DataType::UInt32 => $then!(UInt32Type),
            DataType::UInt64 => $then!(UInt64Type),
            _ => $otherwise,
        }
    };
}

/// A chunk with what must be made once and not once a row: its nulls, and the places in its dictionary.
struct Reader<'a> {
    array: &'a ArrayRef,
    column: &'a str,
    nulls: Option<NullBuffer>,
    dictionary: Option<(&'a ArrayRef, Vec<usize>)>,
}

impl<'a> Reader<'a> {
    fn new(array: &'a ArrayRef, column: &'a str) -> Self {
        let dictionary = array.as_any_dictionary_opt().filter(|dictionary| !dictionary.values().is_empty());
        let dictionary = dictionary.map(|dictionary| (dictionary.values(), dictionary.normalized_keys()));
        Self { array, column, nulls: array.logical_nulls(), dictionary }
    }

    fn value<'py>(&self, py: Python<'py>, row: usize) -> PyResult<Bound<'py, PyAny>> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(py.None().into_bound(py));
        }
        match &self.dictionary {
            Some((values, keys)) => value(py, values, keys[row], self.column),
            None => value(py, self.array, row, self.column),
        }
    }

    fn all<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let values = (0..self.array.len()).map(|row| self.value(py, row));
        Ok(PyList::new(py, values.collect::<PyResult<Vec<_>>>()?)?.into_any())
    }
}

fn value<'py>(py: Python<'py>, array: &ArrayRef, row: usize, column: &str) -> PyResult<Bound<'py, PyAny>> {
    macro_rules! number {
        ($type:ty) => {
            Ok(array.as_primitive::<$type>().value(row).into_pyobject(py)?.into_any())
        };
    }
    match array.data_type() {
        DataType::Utf8 => Ok(array.as_string::<i32>().value(row).into_pyobject(py)?.into_any()),
        DataType::LargeUtf8 => Ok(array.as_string::<i64>().value(row).into_pyobject(py)?.into_any()),
        DataType::Utf8View => Ok(array.as_string_view().value(row).into_pyobject(py)?.into_any()),
        DataType::Binary => Ok(array.as_binary::<i32>().value(row).into_pyobject(py)?.into_any()),
        DataType::LargeBinary => Ok(array.as_binary::<i64>().value(row).into_pyobject(py)?.into_any()),
        DataType::BinaryView => Ok(array.as_binary_view().value(row).into_pyobject(py)?.into_any()),
        DataType::Boolean => Ok(array.as_boolean().value(row).into_pyobject(py)?.to_owned().into_any()),
        DataType::Float16 => Ok(array.as_primitive::<Float16Type>().value(row).to_f64().into_pyobject(py)?.into_any()),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::List(_) => Reader::new(&array.as_list::<i32>().value(row), column).all(py),
        DataType::LargeList(_) => Reader::new(&array.as_list::<i64>().value(row), column).all(py),
        DataType::FixedSizeList(..) => Reader::new(&array.as_fixed_size_list().value(row), column).all(py),
        DataType::Struct(fields) => {
            let record = PyDict::new(py);
            for (field, values) in fields.iter().zip(array.as_struct().columns()) {
                record.set_item(field.name(), Reader::new(values, column).value(py, row)?)?;
            }
            Ok(record.into_any())
        }
        other => numeric!(other, number, Err(wrong_type(py, column, other, "numbers, strings, lists or structs"))),
    }
}

/// The error for a column of a type that cannot be read as what is needed.
pub fn wrong_type(py: Python<'_>, column: &str, given: &DataType, expected: &str) -> PyErr {
    error(py, "column_type", |context| {
        context.set_item("column", column)?;
        context.set_item("given", format!("Arrow's {given}"))?;
        context.set_item("expected", expected)
    })
}

impl ArrowColumn {
    /// One array as a column.
    pub fn of(array: &ArrayRef) -> Self {
        Self { name: String::new(), data_type: array.data_type().clone(), chunks: vec![array.clone()] }
    }

    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// As f64, with which rows are not null (empty: all). One chunk of f64 is not copied.
    pub fn floats(&self, py: Python<'_>, column: &str) -> PyResult<(ScalarBuffer<f64>, Vec<bool>)> {
        let mut scored = Vec::new();
        if self.chunks.iter().any(|chunk| chunk.logical_null_count() > 0) {
            for chunk in &self.chunks {
                match chunk.logical_nulls() {
                    Some(nulls) => scored.extend(nulls.iter()),
                    None => scored.resize(scored.len() + chunk.len(), true),
                }
            }
        }
        if let ([chunk], DataType::Float64) = (&self.chunks[..], &self.data_type) {
            return Ok((chunk.as_primitive::<Float64Type>().values().clone(), scored));
        }
        let mut values: Vec<f64> = Vec::with_capacity(self.__len__());
        #[allow(clippy::cast_precision_loss, clippy::cast_lossless)]
        for chunk in &self.chunks {
            macro_rules! number {
                ($type:ty) => {
                    values.extend(chunk.as_primitive::<$type>().values().iter().map(|&x| x as f64))
                };
            }
            match chunk.data_type() {
                DataType::Null => values.resize(values.len() + chunk.len(), 0.0),
                DataType::Boolean => values.extend(chunk.as_boolean().values().iter().map(|x| f64::from(u8::from(x)))),
                DataType::Float16 => {
                    values.extend(chunk.as_primitive::<Float16Type>().values().iter().map(|x| x.to_f64()));
                }
                DataType::Float32 => number!(Float32Type),
                DataType::Float64 => number!(Float64Type),
                other => numeric!(other, number, return Err(wrong_type(py, column, other, "numbers"))),
            }
        }
        Ok((values.into(), scored))
    }

    /// As i64; a null is an error.
    pub fn integers(&self, py: Python<'_>, column: &str) -> PyResult<ScalarBuffer<i64>> {
        self.refuse_nulls(py, column)?;
        if let ([chunk], DataType::Int64) = (&self.chunks[..], &self.data_type) {
            return Ok(chunk.as_primitive::<Int64Type>().values().clone());
        }
        let mut values: Vec<i64> = Vec::with_capacity(self.__len__());
        for chunk in &self.chunks {
            #[allow(clippy::cast_possible_wrap, clippy::cast_lossless, clippy::unnecessary_cast)]
            {
                macro_rules! number {
                    ($type:ty) => {
                        values.extend(chunk.as_primitive::<$type>().values().iter().map(|&x| x as i64))
                    };
                }
                if let Some(flags) = chunk.as_boolean_opt() {
                    values.extend(flags.values().iter().map(i64::from));
                    continue;
                }
                let other = chunk.data_type();
                numeric!(other, number, return Err(wrong_type(py, column, other, "integers")));
            }
        }
        Ok(values.into())
    }

    pub fn refuse_nulls(&self, py: Python<'_>, column: &str) -> PyResult<()> {
        let (rows, count) = self.nulls();
        if count == 0 {
            return Ok(());
        }
        Err(error(py, "null_value", |context| {
            context.set_item("column", column)?;
            context.set_item("count", count)?;
            context.set_item("rows", rows)
        }))
    }

    pub fn strings(&self) -> Option<Strings<'_>> {
        let chunks = self.chunks.iter().map(strings).collect::<Option<Vec<_>>>()?;
        Some(Strings { ends: ends(&self.chunks), chunks })
    }
}

/// The bytes of a string column's chunks.
pub struct Strings<'a> {
    chunks: Vec<Bytes<'a>>,
    ends: Vec<usize>,
}

enum Bytes<'a> {
    Small(&'a arrow_array::BinaryArray),
    Large(&'a arrow_array::LargeBinaryArray),
    View(&'a arrow_array::BinaryViewArray),
    SmallText(&'a arrow_array::StringArray),
    LargeText(&'a arrow_array::LargeStringArray),
    ViewText(&'a arrow_array::StringViewArray),
    /// Lists of integers, by the bytes of one and where each list ends.
    Integers(&'a [u8], usize, Vec<usize>),
}

pub fn strings_of(array: &ArrayRef) -> Option<Strings<'_>> {
    Some(Strings { chunks: vec![strings(array)?], ends: vec![array.len()] })
}

fn strings(array: &ArrayRef) -> Option<Bytes<'_>> {
    Some(match array.data_type() {
        DataType::Utf8 => Bytes::SmallText(array.as_string()),
        DataType::LargeUtf8 => Bytes::LargeText(array.as_string()),
        DataType::Utf8View => Bytes::ViewText(array.as_string_view()),
        DataType::Binary => Bytes::Small(array.as_binary()),
        DataType::LargeBinary => Bytes::Large(array.as_binary()),
        DataType::BinaryView => Bytes::View(array.as_binary_view()),
        DataType::List(_) => integers(array.as_list::<i32>().values(), ends_of(array.as_list::<i32>()))?,
        DataType::LargeList(_) => integers(array.as_list::<i64>().values(), ends_of(array.as_list::<i64>()))?,
        DataType::FixedSizeList(_, size) => {
            let ends = (0..=array.len()).map(|row| row * usize::try_from(*size).unwrap_or(0));
            integers(array.as_fixed_size_list().values(), ends.collect())?
        }
        _ => return None,
    })
}

fn ends_of<O: OffsetSizeTrait>(lists: &GenericListArray<O>) -> Vec<usize> {
    lists.value_offsets().iter().map(|offset| offset.as_usize()).collect()
}

fn integers(values: &ArrayRef, ends: Vec<usize>) -> Option<Bytes<'_>> {
    if ends.first() == ends.last() {
        return Some(Bytes::Integers(&[], 0, ends));
    }
    if values.null_count() > 0 || !is_integer(values.data_type()) {
        return None;
    }
    let width = values.data_type().primitive_width()?;
    macro_rules! bytes {
        ($type:ty) => {
            values.as_primitive::<$type>().values().inner().as_slice()
        };
    }
    let bytes = numeric!(values.data_type(), bytes, return None);
    Some(Bytes::Integers(bytes, width, ends))
}

impl Keys for Strings<'_> {
    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn fill<'a>(&'a self, mut rows: Range<usize>, block: &mut Vec<&'a [u8]>) {
        while !rows.is_empty() {
            let chunk = self.ends.partition_point(|&end| end <= rows.start);
            let start = if chunk == 0 { 0 } else { self.ends[chunk - 1] };
            let end = rows.end.min(self.ends[chunk]);
            let here = rows.start - start..end - start;
            match &self.chunks[chunk] {
                Bytes::Small(array) => block.extend(here.map(|i| array.value(i))),
                Bytes::Large(array) => block.extend(here.map(|i| array.value(i))),
                Bytes::View(array) => block.extend(here.map(|i| array.value(i))),
                Bytes::SmallText(array) => block.extend(here.map(|i| array.value(i).as_bytes())),
                Bytes::LargeText(array) => block.extend(here.map(|i| array.value(i).as_bytes())),
                Bytes::ViewText(array) => block.extend(here.map(|i| array.value(i).as_bytes())),
                Bytes::Integers(bytes, width, ends) => {
                    block.extend(here.map(|i| &bytes[width * ends[i]..width * ends[i + 1]]));
                }
            }
            rows.start = end;
        }
    }
}

/// Whether the type is an integer that group ids can be.
pub fn is_integer(data_type: &DataType) -> bool {
    macro_rules! yes {
        ($type:ty) => {
            <$type as ArrowPrimitiveType>::DATA_TYPE.is_integer()
        };
    }
    numeric!(data_type, yes, false)
}
