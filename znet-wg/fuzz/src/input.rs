//! An input as a sequence of small numbers and byte strings. It never runs out: behind its end are zeroes, so that
//! every input means something and a fuzzer may cut one anywhere.

/// The rest of an input.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As many bytes as there are, but no more than `len`.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    /// Little-endian.
    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// Byte strings of up to 65,535 bytes, their length in front.
    pub(crate) fn string(&mut self) -> &'a [u8] {
        let len = self.u16();
        self.bytes(len.into())
    }

    /// Changes up to three bytes, each named by its place.
    pub(crate) fn edit(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.u8() % 4 {
            let (at, with) = (self.u16(), self.u8());
            if !bytes.is_empty() {
                bytes[usize::from(at) % bytes.len()] ^= with;
            }
        }
    }
}
