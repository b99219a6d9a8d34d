//! The main thread of a stand-alone process: `wg(8)`, signals, and the end of the device.

use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::device::Standalone;
use crate::uapi::socket::Listener;
use crate::uapi::{Request, RequestReader, errno_reply, parse_with};

/// Most clients at once; further ones wait to be accepted.
const MAX_CLIENTS: usize = 16;
/// How long a client may take to read an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the MTU is looked at, in milliseconds.
const POLL_MILLIS: u16 = 1_000;

/// Answers until a signal asks to end, or the device is gone.
///
/// # Errors
/// The operating system's: nothing can be waited for.
pub fn serve(
    device: &mut Standalone,
    listener: &Listener,
    signals: &OwnedFd,
    gone: &EventFd,
) -> std::io::Result<()> {
    let mut clients: Vec<RequestReader<UnixStream>> = Vec::new();
    loop {
        let ready = wait(listener, signals, gone, &clients)?;
        device.follow_mtu();
        if ready.ends {
            return Ok(());
        }
        let mut number = 0;
        clients.retain_mut(|client| {
            let talks = ready.clients.get(number).copied().unwrap_or(false);
            number += 1;
            !talks || answer(client, device)
        });
        if ready.listener && clients.len() < MAX_CLIENTS {
            let accepted = listener.accept().and_then(|stream| {
                stream.set_write_timeout(Some(TIMEOUT))?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => clients.push(RequestReader::new(stream)),
                Err(error) => tracing::debug!(%error, "a client was not accepted"),
            }
        }
    }
}

struct Ready {
    ends: bool,
    listener: bool,
    clients: Vec<bool>,
}

fn wait(
    listener: &Listener,
    signals: &OwnedFd,
    gone: &EventFd,
    clients: &[RequestReader<UnixStream>],
) -> std::io::Result<Ready> {
    let mut fds = vec![
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(gone.as_fd(), PollFlags::POLLIN),
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
    ];
    if clients.len() >= MAX_CLIENTS {
        fds.truncate(2);
    }
    let before = fds.len();
    fds.extend(clients.iter().map(|client| PollFd::new(client.get_ref().as_fd(), PollFlags::POLLIN)));
    match poll(&mut fds, PollTimeout::from(POLL_MILLIS)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
    let (own, clients) = ready.split_at_checked(before).unwrap_or_default();
    let at = |number: usize| own.get(number).copied().unwrap_or(false);
    Ok(Ready { ends: at(0) || at(1), listener: at(2), clients: clients.to_vec() })
}

/// Answers what a client asked; `false` when it is to be hung up on.
fn answer(client: &mut RequestReader<UnixStream>, device: &mut Standalone) -> bool {
    loop {
        let request = match client.next_request() {
            Ok(Some(request)) => request,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Ok(None) | Err(_) => return false,
        };
        let index = |name: &str| nix::net::if_::if_nametoindex(name).ok();
        let text = match parse_with(&request, &index) {
            Ok(Request::Get) => device.describe(),
            Ok(Request::Set(change)) => {
                let errno = device.set(change).err().map_or(0, |errno| errno as i32);
                errno_reply(errno).into()
            }
            Err(error) => {
                tracing::warn!(%error, "a request was refused");
                errno_reply(error.errno()).into()
            }
        };
        let stream = client.get_mut();
        let written = stream
            .set_nonblocking(false)
            .and_then(|()| stream.write_all(text.as_bytes()))
            .and_then(|()| stream.set_nonblocking(true));
        if written.is_err() {
            return false;
        }
    }
}
