//! What a confined process may do, and what ends it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use znet_wg::sandbox::{Program, confine};

/// Says which of the deeds below a copy of this program commits once it is confined.
const DEED: &str = "ZNET_TEST_DEED";
/// Whether that copy is an engine or a stand-alone device.
const PROGRAM: &str = "ZNET_TEST_PROGRAM";
/// How the copy ends when nothing killed it.
const LIVED: i32 = 42;

/// Runs this test program again, confined.
fn commit(program: &str, deed: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "confined"])
        .env(PROGRAM, program)
        .env(DEED, deed)
        .output()
        .unwrap()
        .status
}

#[test]
#[ignore = "the confined copy that the other tests start"]
fn confined() {
    let Ok(deed) = std::env::var(DEED) else { return };
    let program = match std::env::var(PROGRAM).as_deref() {
        Ok("standalone") => Program::Standalone,
        _ => Program::Engine,
    };
    let (mut ours, _theirs) = UnixStream::pair().unwrap();
    // A thread that is there already is confined as well.
    let (sender, deeds) = std::sync::mpsc::channel::<String>();
    let (ready, running) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        ready.send(()).unwrap();
        deeds.recv().map(|deed| do_it(&deed))
    });
    running.recv().unwrap();
    confine(program).unwrap();
    ours.write_all(b"allowed").unwrap();
    match deed.strip_prefix("other thread: ") {
        Some(deed) => {
            sender.send(deed.to_owned()).unwrap();
            if !matches!(other.join(), Ok(Ok(()))) {
                std::process::exit(1);
            }
        }
        None => do_it(&deed),
    }
    std::process::exit(LIVED);
}

fn do_it(deed: &str) {
    match deed {
        "nothing" => {}
        "open a file" => {
            let refused = std::fs::File::open("/dev/null").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
        }
        // As when many sessions end at once: glibc gives a thread's memory back, and looks into a file for how.
        "free much memory" => drop((0..20_000).map(|_| vec![1_u8; 2_048]).collect::<Vec<_>>()),
        "start a program" => drop(Command::new("/bin/true").status()),
        "make a socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "connect" => drop(UnixStream::connect("/nonexistent")),
        "start a thread" => drop(std::thread::Builder::new().spawn(|| {})),
        deed => panic!("{deed}"),
    }
}

#[test]
fn a_forbidden_system_call_kills_an_engine_on_whatever_thread() {
    for deed in ["start a program", "make a socket", "connect", "start a thread"] {
        for deed in [deed.to_owned(), format!("other thread: {deed}")] {
            let status = commit("engine", &deed);
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{deed}: {status}");
        }
    }
    assert_eq!(commit("engine", "nothing").code(), Some(LIVED));
}

#[test]
fn memory_is_freed_and_no_file_is_opened() {
    for program in ["engine", "standalone"] {
        for deed in ["free much memory", "open a file"] {
            for deed in [deed.to_owned(), format!("other thread: {deed}")] {
                let status = commit(program, &deed);
                assert_eq!(status.code(), Some(LIVED), "{program}: {deed}: {status}");
            }
        }
    }
}

#[test]
fn a_stand_alone_device_may_bind_another_port_and_no_more() {
    for deed in ["start a program", "connect", "start a thread"] {
        let status = commit("standalone", deed);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{deed}: {status}");
    }
    assert_eq!(commit("standalone", "make a socket").code(), Some(LIVED));
}
