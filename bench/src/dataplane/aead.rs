//! The AEAD by itself, on one core: no data plane can be faster than its cipher.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::metric::{Metric, Sample};

/// How long sealing and opening are tried, together, for each size.
const LOOK: Duration = Duration::from_secs(1);
/// Packets that are sealed before they are opened. Opening happens in place and spoils its input, so there must be many of them for each
/// reading of the clock; all of them fit a core's own cache.
const BATCH: usize = 64;
/// Bytes of the authenticator that follows each packet (white paper, section 5.4.6).
const TAG: usize = 16;

/// Packets per second of one core.
struct Speed {
    sealed: f64,
    opened: f64,
}

/// Measures both sizes.
pub(super) fn measure() -> Result<Vec<Sample>> {
    let (large, small) = (speed(1420)?, speed(64)?);
    let gbit = |packets: f64| packets * 1420.0 * 8.0 / 1e9;
    Ok(vec![
        (Metric::Seal1420, gbit(large.sealed)),
        (Metric::Open1420, gbit(large.opened)),
        (Metric::Seal64, small.sealed / 1e6),
        (Metric::Open64, small.opened / 1e6),
    ])
}

fn speed(size: usize) -> Result<Speed> {
    let broken = |_| anyhow!("ring refuses its own packets");
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(broken)?);
    let mut packets = vec![vec![0_u8; size + TAG]; BATCH];
    let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
    let (mut counter, mut batches) = (0_u64, 0_u32);
    let begun = Instant::now();
    while begun.elapsed() < LOOK {
        let sealed = Instant::now();
        for (packet, counter) in packets.iter_mut().zip(counter..) {
            let (text, tag) = packet.split_at_mut(size);
            let made = key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text).map_err(broken)?;
            tag.copy_from_slice(made.as_ref());
        }
        let opened = Instant::now();
        for (packet, counter) in packets.iter_mut().zip(counter..) {
            key.open_in_place(nonce(counter), Aad::empty(), packet).map_err(broken)?;
        }
        sealing += opened - sealed;
        opening += opened.elapsed();
        black_box(&packets);
        counter += BATCH as u64;
        batches += 1;
    }
    let packets = f64::from(batches) * BATCH as f64;
    Ok(Speed { sealed: packets / sealing.as_secs_f64(), opened: packets / opening.as_secs_f64() })
}

/// Four zero bytes and the counter, little-endian (white paper, section 5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    if let Some(end) = bytes.last_chunk_mut::<8>() {
        *end = counter.to_le_bytes();
    }
    Nonce::assume_unique_for_key(bytes)
}
