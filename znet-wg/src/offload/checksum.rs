//! The internet checksum (RFC 1071): the complement of the sum of all 16-bit words, carries added back in.
//!
//! The sum does not depend on the order of bytes in a word, as long as all words have the same, and not on
//! the width of the words that are added either. So words of 32 bits are added as the machine reads them, in
//! lanes that the compiler makes vectors of, and only the result is folded and turned.

/// Bytes that are added per step.
const STEP: usize = 64;

/// A sum under way. What is added begins at an even place of the whole; only the last part may have an odd
/// length.
///
/// It cannot overflow: each part adds less than 2³³, and a packet has a handful of parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of the pseudo header that TCP and UDP prepend (RFC 9293 3.1, RFC 8200 8.1): source and
    /// destination address, the protocol, and the bytes of header and payload together.
    #[inline]
    pub fn pseudo(addresses: &[u8], protocol: u8, length: u32) -> Self {
        Self::default().bytes(addresses).word(u16::from(protocol)).long(length)
    }

    /// Adds bytes, as if a zero followed when their number is odd.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (steps, rest) = bytes.as_chunks::<STEP>();
        let mut lanes = [0u64; STEP / 4];
        for step in steps {
            let (words, _) = step.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum: u64 = lanes.iter().sum();
        let (words, last) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let last = match *last {
            [a] => [a, 0, 0, 0],
            [a, b] => [a, b, 0, 0],
            [a, b, c] => [a, b, c, 0],
            _ => [0; 4],
        };
        sum += u64::from(u32::from_ne_bytes(last));
        Self(self.0 + (sum & 0xffff_ffff) + (sum >> 32))
    }

    /// Adds a number of 16 bits.
    #[inline]
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Adds a number of 32 bits.
    #[inline]
    #[must_use]
    pub fn long(self, long: u32) -> Self {
        Self(self.0 + u64::from(long.to_be()))
    }

    /// The sum in 16 bits, not complemented: what stands in the checksum's field while it is to be finished.
    #[inline]
    pub fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// The checksum as UDP wants it: there zero says that there is none, so that its twin stands for it (RFC
    /// 768).
    #[inline]
    pub fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}
