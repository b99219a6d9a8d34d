//! Pings, from wherever a command can be run.

use std::time::Duration;

use netns_harness::{HostCommand, probe};

use crate::Result;

/// How long one of many attempts waits.
const ATTEMPT: Duration = Duration::from_millis(200);

/// Whether one ping to an address is answered within a time.
pub(crate) fn once(ping: HostCommand, to: &str, within: Duration) -> Result<bool> {
    let seconds = format!("{:.1}", within.as_secs_f64());
    let output = ping.args(["-n", "-c", "1", "-W", &seconds, to]).try_run()?;
    Ok(output.status.success())
}

/// Pings an address until it answers.
pub(crate) fn until_answered(ping: impl Fn() -> HostCommand, to: &str, timeout: Duration) -> Result {
    let answered = || once(ping(), to, ATTEMPT).ok().filter(|answered| *answered);
    probe::until(&format!("{to} to answer pings"), timeout, answered)?;
    Ok(())
}
