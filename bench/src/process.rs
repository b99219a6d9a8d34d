//! CPU time and memory, as proc(5) tells them.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Ticks of a second in `/proc`. The kernel scales to this number (`USER_HZ`) on every architecture that we build for.
const USER_HZ: f64 = 100.0;

/// CPU seconds used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// By the tunnel's processes at both ends: user and system time. What the kernel does in their name counts, what it does in
    /// interrupts is counted for whoever was interrupted.
    tunnel: f64,
    /// By the whole machine, interrupts, iperf3 and whatever else runs on it included.
    machine: f64,
}

/// CPU seconds used in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) tunnel: f64,
    pub(crate) machine: f64,
}

impl Usage {
    /// Until now, with these processes as the tunnel.
    pub(crate) fn now(tunnel: &[u32]) -> Result<Self> {
        let seconds = tunnel.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>()?;
        Ok(Self { tunnel: seconds, machine: of_machine()? })
    }

    /// From `earlier` to this.
    pub(crate) fn since(self, earlier: Self) -> Used {
        Used { tunnel: self.tunnel - earlier.tunnel, machine: self.machine - earlier.machine }
    }
}

/// How many of the machine's cores are busy on average, looked at for a while.
pub(crate) fn busy_cores(look: Duration) -> Result<f64> {
    let before = of_machine()?;
    std::thread::sleep(look);
    Ok((of_machine()? - before) / look.as_secs_f64())
}

/// Resident memory of a process in MiB (`VmRSS`).
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// User and system time of a process so far, all of its threads together.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process ended")?;
    process_ticks(&stat).map(|ticks| ticks / USER_HZ).context("/proc/PID/stat has no times")
}

fn of_machine() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    machine_ticks(&stat).map(|ticks| ticks / USER_HZ).context("/proc/stat has no times")
}

/// `utime` and `stime` are fields 14 and 15; the name in field 2 may have blanks and parentheses.
fn process_ticks(stat: &str) -> Option<f64> {
    let (_, from_state) = stat.rsplit_once(')')?;
    let mut times = from_state.split_ascii_whitespace().skip(11);
    let (user, system): (f64, f64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    Some(user + system)
}

/// User, nice, system, interrupts and soft interrupts. Neither idle time nor waiting nor what the hypervisor stole; guests are
/// in user time already.
fn machine_ticks(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<f64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].into_iter().map(|at| fields.get(at).copied());
    busy.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_understood() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 120 34 0 0 20 0 1 0 100 1 1";
        assert_eq!(process_ticks(stat), Some(154.0));
        assert_eq!(process_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn idle_time_is_not_busy() {
        let stat = "cpu  10 2 30 4000 500 6 7 80 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(machine_ticks(stat), Some(55.0));
        assert_eq!(machine_ticks("intr 1"), None);
    }
}
