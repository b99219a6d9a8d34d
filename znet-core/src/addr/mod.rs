//! Prefixes and the allocator of addresses.
//!
//! An [`Allocator`] serves one prefix of one family. It gives the lowest free address that neither belongs to
//! somebody nor is reserved nor rests, or an explicit one on request. It knows no names and no containers: who holds
//! an address is the caller's business.

mod allocator;
mod prefix;
mod resting;
mod runs;

pub use allocator::{Allocator, ExplicitError};
pub(crate) use prefix::check_disjoint;
pub use prefix::{MAX_IPV4_PREFIX_LEN, check_prefixes, draw_ula_prefix};
