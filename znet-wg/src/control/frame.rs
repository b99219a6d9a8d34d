//! Frames: four bytes of length, JSON, and descriptors beside the length.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Largest frame in bytes: some 500 peers take about 200 KiB.
pub const MAX_FRAME: usize = 4 << 20;
/// Most descriptors beside one frame.
const MAX_FDS: usize = 4;

/// Why a frame was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Larger than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is larger than the bound of {MAX_FRAME}")]
    TooLarge(usize),
    /// Not what was expected.
    #[error("the frame cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<nix::Error> for FrameError {
    fn from(error: nix::Error) -> Self {
        Self::Io(error.into())
    }
}

/// Sends a message and descriptors beside it.
///
/// # Errors
/// [`FrameError`]; the stream is of no use after one.
pub fn send_frame(
    mut stream: &UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let body = Zeroizing::new(serde_json::to_vec(message)?);
    if body.len() > MAX_FRAME || fds.len() > MAX_FDS {
        return Err(FrameError::TooLarge(body.len()));
    }
    let header = (body.len() as u32).to_le_bytes();
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let sent =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&header)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    stream.write_all(header.get(sent..).unwrap_or_default())?;
    stream.write_all(&body)?;
    Ok(())
}

/// Receives a message and the descriptors beside it.
///
/// # Errors
/// [`FrameError`]; the stream is of no use after one.
pub fn recv_frame<T: DeserializeOwned>(mut stream: &UnixStream) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let mut header = [0u8; 4];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let (received, fds) = {
        let mut slices = [IoSliceMut::new(&mut header)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just installed these descriptors for us, and nobody else knows them yet.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, fds)
    };
    if received == 0 {
        return Err(FrameError::Closed);
    }
    stream.read_exact(header.get_mut(received..).unwrap_or_default())?;
    let len = u32::from_le_bytes(header) as usize;
    if len > MAX_FRAME {
        return Err(FrameError::TooLarge(len));
    }
    let mut body = Zeroizing::new(vec![0; len]);
    stream.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, fds))
}
