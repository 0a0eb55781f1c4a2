//! Little-endian writing and bounded reading of primitive fields.

/// A structure that does not decode; says which field and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end inside `field`.
    Truncated { field: &'static str },
    /// A count or length is above its named maximum.
    TooLarge { field: &'static str, got: u64, max: u64 },
    /// A value no version of this format writes.
    Invalid { field: &'static str, got: u64 },
    /// Bytes are left over behind the last field.
    Trailing { len: usize },
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DecodeError::Truncated { field } => write!(f, "ends inside {field}"),
            DecodeError::TooLarge { field, got, max } => {
                write!(f, "{field} is {got}, at most {max} is possible")
            }
            DecodeError::Invalid { field, got } => write!(f, "{field} has the unknown value {got}"),
            DecodeError::Trailing { len } => write!(f, "{len} bytes follow the last field"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Appends fields to a byte vector.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    #[must_use]
    pub fn new() -> Encoder {
        Encoder::default()
    }

    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Bytes without a length; the decoder knows how many.
    pub fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// A u32 length, then the bytes.
    ///
    /// # Panics
    /// If `value` is 4 GiB or longer.
    pub fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.raw(value);
    }

    /// A count or length as u32.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("counts on disk stay below 2^32"));
    }
}

/// Takes fields off a byte slice.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { rest: bytes }
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn raw(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(*taken)
    }

    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|bytes| bytes[0])
    }

    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_le_bytes)
    }

    /// A u32 count or length of at most `max`.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::TooLarge`].
    pub fn count(&mut self, field: &'static str, max: usize) -> Result<usize, DecodeError> {
        let got = self.u32(field)?;
        if got as usize > max {
            return Err(DecodeError::TooLarge { field, got: u64::from(got), max: max as u64 });
        }
        Ok(got as usize)
    }

    /// A u32 length of at most `max`, then that many bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::TooLarge`].
    pub fn bytes(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.count(field, max)?;
        self.raw(field, len)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// # Errors
    /// [`DecodeError::Trailing`] when bytes are left.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { len: self.rest.len() }) }
    }
}
