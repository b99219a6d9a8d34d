//! What makes a program of its own out of a data plane: `znet-wg NAME`.
//!
//! It stands in for `boringtun-cli` and `wireguard-go`, so options and environment variables of both are
//! understood. The order in which a program uses the modules matters, and each says what must have come
//! before it:
//!
//! 1. [`cli`] reads the command line, [`inherit`] takes descriptors that the caller named, [`logging`] opens
//!    the log.
//! 2. [`daemon`] detaches; no thread may exist yet. From now on errors go to whoever waits for
//!    [`daemon::Readiness`].
//! 3. [`signals`] blocks SIGTERM and SIGINT before threads start, so that all inherit it.
//! 4. The device, its socket ([`crate::uapi::socket`]) and whatever else must be opened.
//! 5. [`privileges`] gives up the rest, then [`Standalone::start`] starts threads, then [`daemon::Readiness::ready`].
//! 6. [`serve`] answers `wg(8)` until the end.

pub mod cli;
pub mod daemon;
mod device;
pub mod inherit;
pub mod logging;
pub mod privileges;
pub mod serve;
pub mod signals;

pub use device::Standalone;
