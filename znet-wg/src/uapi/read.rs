//! Requests out of a stream of bytes.

use std::io::{Error, ErrorKind, Read, Result};

use zeroize::Zeroizing;

use super::reserve_wiping;

/// Longest request in bytes: twice what `wg(8)` sends for a peer with 130,560 IPv6 ranges.
pub const MAX_REQUEST: usize = 16 << 20;
/// How much is read at once, in bytes: many lines, and little beside [`MAX_REQUEST`].
const CHUNK: usize = 64 << 10;
/// What ends a request: the end of its last line, and a blank one.
const END: &[u8; 2] = b"\n\n";

/// Takes the requests of one connection apart; a client may send several, and the next before it has its
/// answer.
#[derive(Debug)]
pub struct RequestReader<R> {
    source: R,
    /// Received and not yet handed out.
    buffer: Zeroizing<Vec<u8>>,
    /// So much of the buffer holds no end of a request.
    searched: usize,
}

impl<R: Read> RequestReader<R> {
    /// A reader of this connection.
    pub fn new(source: R) -> Self {
        Self { source, buffer: Zeroizing::new(Vec::new()), searched: 0 }
    }

    /// The connection, to answer on it.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// The connection, to wait on it.
    pub fn get_ref(&self) -> &R {
        &self.source
    }

    /// The next request without the blank line that ends it; `None` when the client has closed and nothing is
    /// left.
    ///
    /// # Errors
    /// The connection's own, after which nothing is lost: on [`ErrorKind::WouldBlock`] call again when there
    /// is more. [`ErrorKind::UnexpectedEof`]: the client closed within a request. [`ErrorKind::InvalidData`]:
    /// the request is longer than [`MAX_REQUEST`] or is not UTF-8; close the connection.
    pub fn next_request(&mut self) -> Result<Option<Zeroizing<String>>> {
        loop {
            if let Some(len) = self.find_end() {
                return self.take(len).map(Some);
            }
            if self.buffer.len() >= MAX_REQUEST {
                return Err(too_long());
            }
            match self.fill() {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the blank line of the first request in the buffer is. No byte is looked at twice, but for the
    /// last.
    fn find_end(&mut self) -> Option<usize> {
        let from = self.searched;
        let found = self.buffer.get(from..)?.windows(END.len()).position(|pair| pair == END);
        self.searched = self.buffer.len().saturating_sub(END.len() - 1);
        // The first line break belongs to the last line.
        found.map(|at| from + at + 1)
    }

    fn take(&mut self, len: usize) -> Result<Zeroizing<String>> {
        let rest = Zeroizing::new(self.buffer.split_off(len + 1));
        let mut request = std::mem::replace(&mut self.buffer, rest);
        self.searched = 0;
        request.truncate(len);
        if len > MAX_REQUEST {
            return Err(too_long());
        }
        match String::from_utf8(std::mem::take(&mut *request)) {
            Ok(text) => Ok(Zeroizing::new(text)),
            Err(error) => {
                drop(Zeroizing::new(error.into_bytes()));
                Err(Error::new(ErrorKind::InvalidData, "the request is not UTF-8"))
            }
        }
    }

    fn fill(&mut self) -> Result<usize> {
        let len = self.buffer.len();
        reserve_wiping(&mut self.buffer, CHUNK);
        self.buffer.resize(len + CHUNK, 0);
        let received = self.buffer.get_mut(len..).map_or(Ok(0), |room| self.source.read(room));
        self.buffer.truncate(len + received.as_ref().map_or(0, |received| *received));
        received
    }
}

fn too_long() -> Error {
    Error::new(ErrorKind::InvalidData, format!("the request is longer than {MAX_REQUEST} bytes"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Gives what it holds in pieces of this size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, room: &mut [u8]) -> Result<usize> {
            let size = self.1.min(room.len());
            let mut piece = self.0.take(size as u64);
            let len = piece.read(room)?;
            self.0 = self.0.get(len..).unwrap_or_default();
            Ok(len)
        }
    }

    #[test]
    fn several_requests_come_out_one_by_one_however_they_arrive() {
        let bytes = b"get=1\n\nset=1\nlisten_port=1\n\nget=1\n\n";
        for size in 1..=bytes.len() {
            let mut reader = RequestReader::new(Pieces(bytes, size));
            let mut next = || reader.next_request().unwrap().map(|text| text.to_string());
            assert_eq!(next().as_deref(), Some("get=1\n"));
            assert_eq!(next().as_deref(), Some("set=1\nlisten_port=1\n"));
            assert_eq!(next().as_deref(), Some("get=1\n"));
            assert_eq!(next(), None);
        }
    }

    #[test]
    fn a_request_that_stops_in_its_middle_is_none() {
        let mut reader = RequestReader::new(&b"set=1\nreplace_peers=true\n"[..]);
        assert_eq!(reader.next_request().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_request_without_end_is_refused() {
        let mut reader = RequestReader::new(std::io::repeat(b'a'));
        assert_eq!(reader.next_request().unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_request_that_is_no_text_is_refused() {
        let mut reader = RequestReader::new(&b"set=1\n\xff\n\nget=1\n\n"[..]);
        assert_eq!(reader.next_request().unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_connection_that_has_nothing_now_is_asked_again() {
        use std::io::Write as _;
        use std::os::unix::net::UnixStream;
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut reader = RequestReader::new(server);
        client.write_all(b"get=1\n").unwrap();
        assert_eq!(reader.next_request().unwrap_err().kind(), ErrorKind::WouldBlock);
        client.write_all(b"\n").unwrap();
        assert_eq!(reader.next_request().unwrap().unwrap().as_str(), "get=1\n");
    }

    #[test]
    fn the_largest_request_of_wg_fits() {
        let mut text = format!("set=1\npublic_key={}\nreplace_allowed_ips=true\n", "0".repeat(64));
        for n in 0..130_560u32 {
            text.push_str(&format!(
                "allowed_ip=2001:db8:1111:2222:3333:4444:{:x}:{:x}/128\n",
                n >> 16,
                n & 0xffff
            ));
        }
        text.push('\n');
        let mut reader = RequestReader::new(text.as_bytes());
        let request = reader.next_request().unwrap().unwrap();
        let super::super::Request::Set(set) = super::super::parse(&request).unwrap() else { unreachable!() };
        assert_eq!(set.peers.first().unwrap().allowed_ips.len(), 130_560);
    }
}
