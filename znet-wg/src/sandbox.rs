//! Giving up privileges and system calls, for ever, before the first byte of a stranger is read.
//!
//! An engine gives up everything ([`drop_privileges`], [`Program::Engine`]). A stand-alone device keeps what `wg(8)` may still
//! ask of it ([`crate::standalone::privileges`], [`Program::Standalone`]).

use std::collections::BTreeMap;

use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// The user and group that an engine runs as: `nobody` on Debian and most others.
pub const UNPRIVILEGED_ID: u32 = 65_534;
/// Above the highest capability that any kernel has; dropping one that it does not know is refused, which ends the loop.
const CAPABILITIES: std::ops::Range<u64> = 0..64;

/// Why the sandbox could not be entered. An engine that is not confined does not run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step of giving up privileges failed.
    #[error("the engine cannot give up its privileges ({step}): {source}")]
    Privileges {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: nix::Error,
    },
    /// The filter of system calls could not be made or installed.
    #[error("the engine's filter of system calls cannot be installed: {0}")]
    Seccomp(String),
}

/// Gives up user, groups, capabilities, core dumps and the possibility to gain anything back.
///
/// # Errors
/// [`SandboxError::Privileges`]: the step that failed. Those before it are done.
pub fn drop_privileges() -> Result<(), SandboxError> {
    let step = |step| move |source| SandboxError::Privileges { step, source };
    // Two descriptors for each container: the usual limit of 1,024 is soon too low.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(step("limit of open files"))?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(step("limit of open files"))?;
    if Uid::effective().is_root() {
        for capability in CAPABILITIES {
            // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory of ours.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
                break;
            }
        }
        let (uid, gid) = (Uid::from_raw(UNPRIVILEGED_ID), Gid::from_raw(UNPRIVILEGED_ID));
        setgroups(&[]).map_err(step("setgroups"))?;
        setresgid(gid, gid, gid).map_err(step("setresgid"))?;
        // The kernel clears all capabilities as the user changes from root to another.
        setresuid(uid, uid, uid).map_err(step("setresuid"))?;
    }
    set_no_new_privs().map_err(step("no_new_privs"))?;
    set_dumpable(false).map_err(step("dumpable"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("core limit"))?;
    Ok(())
}

/// Whose system calls are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The engine of an agent, which was handed every descriptor that it will ever have.
    Engine,
    /// A stand-alone device, which may be told to listen on another port and removes its socket's file at the end.
    Standalone,
}

/// Allows every thread the system calls that the program uses, and kills the process at any other. All threads must be
/// running: one that is still starting makes calls that none may make later. Opening a file fails and does not kill, as glibc
/// tries it while it gives a thread's memory back, and goes on without.
///
/// # Errors
/// [`SandboxError::Seccomp`].
pub fn confine(program: Program) -> Result<(), SandboxError> {
    let mut calls = allowed();
    if program == Program::Standalone {
        calls.extend(allowed_standalone());
    }
    // Of two filters the stricter answer holds, so that what the first refuses must be among what the second allows.
    filter(&REFUSED, SeccompAction::Errno(libc::EACCES.unsigned_abs()), SeccompAction::Allow)?;
    calls.extend(REFUSED);
    filter(&calls, SeccompAction::Allow, SeccompAction::KillProcess)
}

/// What fails with "permission denied".
const REFUSED: [i64; 1] = [libc::SYS_openat];

fn filter(calls: &[i64], these: SeccompAction, others: SeccompAction) -> Result<(), SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError::Seccomp(error.to_string());
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        calls.iter().map(|call| (*call, vec![])).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(&error))?;
    let filter = SeccompFilter::new(rules, others, these, arch);
    let program =
        BpfProgram::try_from(filter.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| failed(&error))
}

fn allowed_standalone() -> Vec<i64> {
    let mut calls = vec![
        // Another port
        libc::SYS_socket,
        libc::SYS_bind,
        // The socket's file
        libc::SYS_unlinkat,
        libc::SYS_statx,
        // The end of the start: standard error goes nowhere
        libc::SYS_dup3,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([libc::SYS_newfstatat, libc::SYS_dup2]);
    #[cfg(target_arch = "aarch64")]
    calls.push(libc::SYS_newfstatat);
    calls
}

fn allowed() -> Vec<i64> {
    let mut calls = vec![
        // Packets
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_recvmmsg,
        libc::SYS_sendmmsg,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_ctl,
        // The agent and wg(8)
        libc::SYS_accept4,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_ppoll,
        libc::SYS_getsockopt,
        libc::SYS_setsockopt,
        libc::SYS_getsockname,
        libc::SYS_fcntl,
        // The list of sessions
        libc::SYS_pwrite64,
        libc::SYS_ftruncate,
        libc::SYS_ioctl,
        libc::SYS_close,
        libc::SYS_getpid,
        // Memory, time, randomness and threads, as the standard library uses them
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_gettid,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_writev,
    ];
    // Older names that glibc still uses where the architecture has them.
    #[cfg(target_arch = "x86_64")]
    calls.extend([libc::SYS_poll, libc::SYS_epoll_wait]);
    calls.sort_unstable();
    calls
}
