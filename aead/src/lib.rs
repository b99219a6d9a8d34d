//! ChaCha20-Poly1305 (RFC 8439) by the fastest library for this processor, with the names that boringtun uses of ring.
//!
//! A third of what a packet costs is this cipher. ring's and AWS-LC's assembly ends at AVX2; Intel's Multi-Buffer Crypto for IPsec
//! goes on to AVX-512 and takes 530 ns for a packet of 1,420 bytes where they take 750. boringtun cannot be given another
//! implementation, so this crate takes the place of the one it asks for, in the workspace's `[patch.crates-io]`. Where the processor
//! has no AVX-512, or the library was not there when this was built, AWS-LC does the work. It holds no arithmetic of its
//! own: what belongs here is the shape of ring and the choice between the two.
//!
//! Keys are never printed, and wiped when they are dropped: those in AWS-LC's hands by AWS-LC, those in ours by zeroize.

#[cfg(multi_buffer)]
mod multi_buffer;

pub mod aead;

/// What ring calls its only error.
pub mod error {
    pub use aws_lc_rs::error::Unspecified;
}

/// Comparing without telling by time where a difference is.
pub mod constant_time {
    pub use aws_lc_rs::constant_time::verify_slices_are_equal;
}
