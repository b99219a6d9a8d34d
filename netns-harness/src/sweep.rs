//! Removing what killed owners left behind.

use std::time::Duration;

use crate::census;
use crate::error::Result;
use crate::lab::remove_dir;
use crate::owner::{HeldRecord, LabRecord, boot_id, registered};

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Number of labs whose owner is dead.
    pub labs: usize,
    /// Number of processes that lived in them.
    pub processes: usize,
}

/// Removes every lab of this machine whose owner is dead, and nothing of the others.
///
/// # Errors
/// The registry cannot be read or written.
pub fn sweep() -> Result<Swept> {
    let mut swept = Swept::default();
    for path in registered()? {
        let Some(held) = HeldRecord::take_over(&path)? else { continue };
        let record = &held.record;
        // After a reboot nothing of it lives, and its marks may be anybody's.
        if record.boot_id == boot_id() {
            let (killed, _) =
                census::kill_all(PATIENCE, || census::residents(&record.prefix, &record.net_cookies))?;
            swept.processes += killed;
        }
        if !record.logs_kept {
            remove_dir(&record.dir)?;
        }
        swept.labs += 1;
        held.forget()?;
    }
    Ok(swept)
}

/// All labs of this machine, each with whether its owner lives.
///
/// # Errors
/// The registry cannot be read.
pub fn list() -> Result<Vec<(LabRecord, bool)>> {
    let mut all = Vec::new();
    for path in registered()? {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        // One that is just being written or removed is left out.
        let Ok(record) = serde_json::from_str::<LabRecord>(&text) else { continue };
        let dead = HeldRecord::take_over(&path)?.is_some();
        all.push((record, !dead));
    }
    Ok(all)
}
