//! Keys, nonces and the two operations.

use aws_lc_rs::aead as aws;
#[cfg(multi_buffer)]
use zeroize::Zeroizing;

use crate::error::Unspecified;
#[cfg(multi_buffer)]
use crate::multi_buffer::{self, Way};

pub use aws_lc_rs::aead::{Aad, Nonce};

/// Bytes of the tag that follows a packet.
const TAG: usize = 16;

/// The one algorithm that there is here.
#[derive(Debug)]
pub struct Algorithm(());

/// RFC 8439, section 2.8.
pub static CHACHA20_POLY1305: Algorithm = Algorithm(());

/// A key that is not yet given to anybody.
#[derive(Debug)]
pub struct UnboundKey(Work);

impl UnboundKey {
    /// A key of 32 bytes; any other length is refused.
    pub fn new(_: &'static Algorithm, key: &[u8]) -> Result<Self, Unspecified> {
        #[cfg(multi_buffer)]
        if multi_buffer::there() {
            return Ok(Self(Work::MultiBuffer(Zeroizing::new(key.try_into().map_err(|_| Unspecified)?))));
        }
        Self::of_aws_lc(key)
    }

    /// A key whose work AWS-LC does, whatever the processor has: for tests and benchmarks.
    #[doc(hidden)]
    pub fn of_aws_lc(key: &[u8]) -> Result<Self, Unspecified> {
        let key = aws::UnboundKey::new(&aws::CHACHA20_POLY1305, key)?;
        Ok(Self(Work::AwsLc(aws::LessSafeKey::new(key))))
    }

    /// Whether Intel's library does the work of this key.
    #[doc(hidden)]
    pub fn is_multi_buffer(&self) -> bool {
        !matches!(self.0, Work::AwsLc(_))
    }
}

/// Who does a key's work.
enum Work {
    AwsLc(aws::LessSafeKey),
    #[cfg(multi_buffer)]
    MultiBuffer(Zeroizing<[u8; 32]>),
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AwsLc(_) => "AwsLc",
            #[cfg(multi_buffer)]
            Self::MultiBuffer(_) => "MultiBuffer",
        })
    }
}

/// A key whose user sees to it that no nonce comes twice.
#[derive(Debug)]
pub struct LessSafeKey(Work);

impl LessSafeKey {
    /// The same key, to be used.
    pub fn new(key: UnboundKey) -> Self {
        Self(key.0)
    }

    /// Encrypts `data` in place and returns the tag that has to go with it.
    pub fn seal_in_place_separate_tag<A: AsRef<[u8]>>(
        &self,
        nonce: Nonce,
        aad: Aad<A>,
        data: &mut [u8],
    ) -> Result<Tag, Unspecified> {
        match &self.0 {
            Work::AwsLc(key) => {
                let tag = key.seal_in_place_separate_tag(nonce, aad, data)?;
                Ok(Tag(tag.as_ref().try_into().map_err(|_| Unspecified)?))
            }
            #[cfg(multi_buffer)]
            Work::MultiBuffer(key) => multi_buffer::run(Way::Seal, key, nonce.as_ref(), aad.as_ref(), data)
                .map(Tag)
                .ok_or(Unspecified),
        }
    }

    /// Decrypts `data`, whose last 16 bytes are the tag, in place, and returns it without the tag. What is in `data` after an
    /// error is nothing to be used.
    pub fn open_in_place<'a, A: AsRef<[u8]>>(
        &self,
        nonce: Nonce,
        aad: Aad<A>,
        data: &'a mut [u8],
    ) -> Result<&'a mut [u8], Unspecified> {
        match &self.0 {
            Work::AwsLc(key) => key.open_in_place(nonce, aad, data),
            #[cfg(multi_buffer)]
            Work::MultiBuffer(key) => {
                let length = data.len().checked_sub(TAG).ok_or(Unspecified)?;
                let (text, tag) = data.split_at_mut(length);
                let made = multi_buffer::run(Way::Open, key, nonce.as_ref(), aad.as_ref(), text)
                    .ok_or(Unspecified)?;
                crate::constant_time::verify_slices_are_equal(&made, tag)?;
                Ok(text)
            }
        }
    }
}

/// What proves that a packet is whole and of who has the key.
#[derive(Debug, Clone, Copy)]
pub struct Tag([u8; TAG]);

impl AsRef<[u8]> for Tag {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
