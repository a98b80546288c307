//! Reads a GGUF model file into named values and a table of tensors over the file's bytes.
//!
//! The file is not trusted: every count and length is checked against the bytes that are there
//! before it is used, so a damaged file ends in a [`GgufError`], never in a panic or a huge
//! allocation. Only the encodings that the example computes with are known: F32, Q4_1, Q8_0.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Tensors start at multiples of this many bytes unless the file says otherwise (GGUF spec).
const DEFAULT_ALIGNMENT: u64 = 32;
/// GGUF tensors have at most four dimensions (GGML_MAX_DIMS).
const MAX_DIMENSIONS: u32 = 4;
/// A quantised block holds this many weights, in both Q4_1 and Q8_0.
pub const BLOCK_WEIGHTS: usize = 32;

/// Why a file can't be used as a model.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("can't read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("not a GGUF file: it doesn't start with the letters GGUF")]
    NotGguf,
    #[error("GGUF version {0} is not supported: 2 and 3 are")]
    Version(u32),
    #[error("the file ends at byte {length}, inside something that reaches to byte {end}")]
    Truncated { end: u64, length: usize },
    #[error("text at byte {0} is not UTF-8")]
    Text(usize),
    #[error("value kind {kind} of `{key}` is not supported")]
    ValueKind { key: String, kind: u32 },
    #[error("tensor `{name}` has kind {kind}: only F32, Q4_1 and Q8_0 are supported")]
    TensorKind { name: String, kind: u32 },
    #[error("tensor `{0}` has impossible dimensions")]
    TensorShape(String),
    #[error("the file has no `{0}`")]
    Missing(String),
    #[error("`{key}` is not {wanted}")]
    Unexpected { key: String, wanted: &'static str },
}

/// How a tensor's numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    F32,
    /// 32 weights in 20 bytes: f16 scale, f16 minimum, 16 bytes of nibbles.
    Q4_1,
    /// 32 weights in 34 bytes: f16 scale, 32 signed bytes.
    Q8_0,
}

impl Encoding {
    /// Weights in one block and the bytes that hold it.
    fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::Q4_1 => (BLOCK_WEIGHTS as u64, 20),
            Self::Q8_0 => (BLOCK_WEIGHTS as u64, 34),
        }
    }

    /// Bytes of a row, or nothing if the row isn't a whole number of blocks.
    pub fn row_bytes(self, columns: u64) -> Option<u64> {
        let (weights, bytes) = self.block();
        columns.is_multiple_of(weights).then(|| (columns / weights).checked_mul(bytes))?
    }
}

/// A part of shared bytes: the file's, or some made up in memory.
#[derive(Clone)]
pub struct Span {
    bytes: Arc<Vec<u8>>,
    start: usize,
    length: usize,
}

impl From<Vec<u8>> for Span {
    fn from(bytes: Vec<u8>) -> Self {
        Self { start: 0, length: bytes.len(), bytes: Arc::new(bytes) }
    }
}

impl std::ops::Deref for Span {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

/// A tensor of the file: `rows` × `columns` numbers, row after row.
#[derive(Clone)]
pub struct Tensor {
    pub encoding: Encoding,
    pub rows: usize,
    pub columns: usize,
    pub data: Span,
}

/// A value of the file's header.
enum Value {
    Integer(i128),
    Float(f64),
    Bool,
    Text(String),
    List(Vec<Value>),
}

/// A model file: values by key, tensors by name.
pub struct Gguf {
    values: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let read = |source| GgufError::Read { path: path.display().to_string(), source };
        Self::parse(std::fs::read(path).map_err(read)?)
    }

    pub fn parse(bytes: Vec<u8>) -> Result<Self, GgufError> {
        let bytes = Arc::new(bytes);
        let mut reader = Reader { bytes: &bytes, at: 0 };
        if reader.take(4).map_err(|_| GgufError::NotGguf)? != b"GGUF" {
            return Err(GgufError::NotGguf);
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensor_count = reader.u64()?;
        let value_count = reader.u64()?;
        let values = reader.values(value_count)?;
        let entries = reader.entries(tensor_count)?;
        let start = data_start(&values, reader.at)?;
        let tensors = entries.into_iter().map(|entry| entry.place(&bytes, start));
        Ok(Self { tensors: tensors.collect::<Result<_, _>>()?, values })
    }

    pub fn integer(&self, key: &str) -> Result<usize, GgufError> {
        let wanted = "a number of usable size";
        match self.value(key)? {
            Value::Integer(value) => usize::try_from(*value)
                .map_err(|_| GgufError::Unexpected { key: key.into(), wanted }),
            _ => Err(GgufError::Unexpected { key: key.into(), wanted }),
        }
    }

    pub fn float(&self, key: &str) -> Result<f32, GgufError> {
        match self.value(key)? {
            Value::Float(value) => Ok(*value as f32),
            _ => Err(GgufError::Unexpected { key: key.into(), wanted: "a floating-point number" }),
        }
    }

    pub fn text(&self, key: &str) -> Result<&str, GgufError> {
        match self.value(key)? {
            Value::Text(value) => Ok(value),
            _ => Err(GgufError::Unexpected { key: key.into(), wanted: "a text" }),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        self.list(key, "a list of texts", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn integers(&self, key: &str) -> Result<Vec<i128>, GgufError> {
        self.list(key, "a list of whole numbers", |value| match value {
            Value::Integer(number) => Some(*number),
            _ => None,
        })
    }

    /// The tensor called `name`, which must have these dimensions.
    pub fn tensor(&self, name: &str, rows: usize, columns: usize) -> Result<Tensor, GgufError> {
        let tensor = self.tensors.get(name).ok_or_else(|| GgufError::Missing(name.into()))?;
        if (tensor.rows, tensor.columns) != (rows, columns) {
            let wanted = "a tensor of the size that the header promises";
            return Err(GgufError::Unexpected { key: name.into(), wanted });
        }
        Ok(tensor.clone())
    }

    /// A vector of plain floats.
    pub fn floats(&self, name: &str, length: usize) -> Result<Vec<f32>, GgufError> {
        let tensor = self.tensor(name, 1, length)?;
        if tensor.encoding != Encoding::F32 {
            return Err(GgufError::Unexpected { key: name.into(), wanted: "a vector of F32" });
        }
        let (words, _) = tensor.data.as_chunks::<4>();
        Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }

    fn value(&self, key: &str) -> Result<&Value, GgufError> {
        self.values.get(key).ok_or_else(|| GgufError::Missing(key.into()))
    }

    fn list<'a, T>(
        &'a self,
        key: &str,
        wanted: &'static str,
        pick: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Vec<T>, GgufError> {
        let unexpected = || GgufError::Unexpected { key: key.into(), wanted };
        match self.value(key)? {
            Value::List(list) => list.iter().map(pick).collect::<Option<_>>(),
            _ => None,
        }
        .ok_or_else(unexpected)
    }
}

/// Where tensor data starts: behind the header, rounded up to the file's alignment.
fn data_start(values: &HashMap<String, Value>, header_end: usize) -> Result<u64, GgufError> {
    let key = "general.alignment";
    let alignment = match values.get(key) {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Integer(value)) if (1..=1 << 20).contains(value) => *value as u64,
        Some(_) => return Err(GgufError::Unexpected { key: key.into(), wanted: "an alignment" }),
    };
    Ok((header_end as u64).next_multiple_of(alignment))
}

/// A line of the tensor table, before its bytes are looked up.
struct Entry {
    name: String,
    encoding: Encoding,
    rows: u64,
    columns: u64,
    offset: u64,
}

impl Entry {
    fn place(self, bytes: &Arc<Vec<u8>>, start: u64) -> Result<(String, Tensor), GgufError> {
        let row_bytes = self.encoding.row_bytes(self.columns);
        let length = row_bytes.and_then(|bytes| bytes.checked_mul(self.rows));
        let start = start.checked_add(self.offset);
        let (Some(length), Some(start)) = (length, start) else {
            return Err(GgufError::TensorShape(self.name));
        };
        let end = start.saturating_add(length);
        if end > bytes.len() as u64 {
            return Err(GgufError::Truncated { end, length: bytes.len() });
        }
        // Both now lie inside the file, so they fit a usize; so do rows and columns, unless the
        // tensor is empty, which no caller asks for.
        let data = Span { bytes: bytes.clone(), start: start as usize, length: length as usize };
        let (rows, columns) = (self.rows as usize, self.columns as usize);
        Ok((self.name, Tensor { encoding: self.encoding, rows, columns, data }))
    }
}

/// Walks the header; each step checks that its bytes are there.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], GgufError> {
        let rest = &self.bytes[self.at..];
        if count > rest.len() as u64 {
            let end = (self.at as u64).saturating_add(count);
            return Err(GgufError::Truncated { end, length: self.bytes.len() });
        }
        self.at += count as usize;
        Ok(&rest[..count as usize])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let length = self.u64()?;
        let at = self.at;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| GgufError::Text(at))?;
        Ok(text.to_owned())
    }

    fn values(&mut self, count: u64) -> Result<HashMap<String, Value>, GgufError> {
        let mut values = HashMap::new();
        for _ in 0..count {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = if kind == 9 { self.list(&key)? } else { self.scalar(&key, kind)? };
            values.insert(key, value);
        }
        Ok(values)
    }

    /// A list of scalars. Grown as elements are found: the count alone reserves nothing.
    fn list(&mut self, key: &str) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(self.scalar(key, kind)?);
        }
        Ok(Value::List(list))
    }

    /// One value that is not a list (kinds as numbered by the GGUF spec).
    fn scalar(&mut self, key: &str, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(u32::from_le_bytes(self.array()?).into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => self.take(1).map(|_| Value::Bool)?,
            8 => Value::Text(self.text()?),
            10 => Value::Integer(u64::from_le_bytes(self.array()?).into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(GgufError::ValueKind { key: key.into(), kind }),
        })
    }

    fn entries(&mut self, count: u64) -> Result<Vec<Entry>, GgufError> {
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(self.entry()?);
        }
        Ok(entries)
    }

    fn entry(&mut self) -> Result<Entry, GgufError> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(GgufError::TensorShape(name));
        }
        let columns = self.u64()?;
        let mut rows = Some(1_u64);
        for _ in 1..dimensions {
            let dimension = self.u64()?;
            rows = rows.and_then(|rows| rows.checked_mul(dimension));
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let encoding = match kind {
            0 => Encoding::F32,
            3 => Encoding::Q4_1,
            8 => Encoding::Q8_0,
            _ => return Err(GgufError::TensorKind { name, kind }),
        };
        let Some(rows) = rows else { return Err(GgufError::TensorShape(name)) };
        Ok(Entry { name, encoding, rows, columns, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// A file with one value of each sort we read and two tensors.
    fn sample() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(2_u64.to_le_bytes());
        out.extend(4_u64.to_le_bytes());
        text(&mut out, "layers");
        out.extend([4_u32.to_le_bytes(), 30_u32.to_le_bytes()].concat());
        text(&mut out, "base");
        out.extend([6_u32.to_le_bytes(), 1e5_f32.to_le_bytes()].concat());
        text(&mut out, "name");
        out.extend(8_u32.to_le_bytes());
        text(&mut out, "tiny");
        text(&mut out, "words");
        out.extend([9_u32.to_le_bytes(), 8_u32.to_le_bytes()].concat());
        out.extend(2_u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "b");
        for (name, dimensions, kind, offset) in
            [("norm", &[2_u64][..], 0_u32, 0_u64), ("weight", &[32, 2], 3, 32)]
        {
            text(&mut out, name);
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend([1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat());
        out.resize(out.len() + 24, 0);
        out.extend(1..=40);
        out
    }

    #[test]
    fn reads_values_and_tensors() {
        let gguf = Gguf::parse(sample()).unwrap();
        assert_eq!(gguf.integer("layers").unwrap(), 30);
        assert_eq!(gguf.float("base").unwrap(), 1e5);
        assert_eq!(gguf.text("name").unwrap(), "tiny");
        assert_eq!(gguf.texts("words").unwrap(), ["a", "b"]);
        assert_eq!(gguf.floats("norm", 2).unwrap(), [1.5, -2.0]);
        let weight = gguf.tensor("weight", 2, 32).unwrap();
        assert_eq!(weight.encoding, Encoding::Q4_1);
        assert_eq!(*weight.data, (1..=40).collect::<Vec<u8>>()[..]);
    }

    #[test]
    fn asks_for_the_wrong_thing_are_errors() {
        let gguf = Gguf::parse(sample()).unwrap();
        assert!(matches!(gguf.integer("heads"), Err(GgufError::Missing(_))));
        assert!(matches!(gguf.integer("name"), Err(GgufError::Unexpected { .. })));
        assert!(matches!(gguf.integers("words"), Err(GgufError::Unexpected { .. })));
        assert!(matches!(gguf.tensor("weight", 3, 32), Err(GgufError::Unexpected { .. })));
        assert!(matches!(gguf.floats("weight", 64), Err(GgufError::Unexpected { .. })));
    }

    #[test]
    fn every_cut_is_an_error() {
        let whole = sample();
        for length in 0..whole.len() {
            let cut = Gguf::parse(whole[..length].to_vec());
            assert!(cut.is_err(), "cut at {length} of {} was accepted", whole.len());
        }
    }

    /// Damage may go unnoticed (a weight changed), but it never panics nor allocates wildly.
    #[test]
    fn every_damaged_byte_is_survived() {
        let whole = sample();
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                if let Ok(gguf) = Gguf::parse(damaged) {
                    let _ = gguf.tensor("weight", 2, 32).map(|tensor| tensor.data.len());
                    let _ = gguf.floats("norm", 2);
                }
            }
        }
    }
}
