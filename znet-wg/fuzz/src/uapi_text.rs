//! Requests of the configuration protocol.

use std::io::{ErrorKind, Read, Result};

use znet_wg::uapi::{Request, RequestReader, parse, parse_with};

use crate::input::Input;

/// Longest text of an error: it repeats no more than a little of what a client wrote.
const MAX_ERROR: usize = 800;

/// Gives what it holds in pieces, and sometimes nothing for now.
struct Pieces<'a> {
    rest: &'a [u8],
    sizes: &'a [u8],
    turn: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, room: &mut [u8]) -> Result<usize> {
        let size = self.sizes.get(self.turn % self.sizes.len().max(1)).copied().unwrap_or(1);
        self.turn += 1;
        if size == 0 && self.turn.is_multiple_of(2) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = usize::from(size).max(1).min(self.rest.len()).min(room.len());
        let (piece, rest) = self.rest.split_at(len);
        room[..len].copy_from_slice(piece);
        self.rest = rest;
        Ok(len)
    }
}

/// The first byte tells how many bytes follow that are the sizes of pieces; the rest is what a client sends.
pub fn uapi_text(data: &[u8]) {
    let mut input = Input::new(data);
    let count = usize::from(input.u8() % 16);
    let sizes = input.bytes(count);
    let sent = input.bytes(usize::MAX);
    let mut reader = RequestReader::new(Pieces { rest: sent, sizes, turn: 0 });
    let mut consumed = 0;
    loop {
        match reader.next_request() {
            Ok(Some(text)) => {
                let end = consumed + text.len();
                assert_eq!(&sent[consumed..end], text.as_bytes(), "a request is what was sent");
                assert!(text.ends_with('\n') && sent[end] == b'\n' && !text.contains("\n\n"));
                consumed = end + 1;
                understand(&text);
            }
            Ok(None) => {
                assert_eq!(consumed, sent.len(), "nothing is left out");
                break;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                let rest = &sent[consumed..];
                match error.kind() {
                    ErrorKind::UnexpectedEof => {
                        assert!(!rest.windows(2).any(|pair| pair == b"\n\n"));
                    }
                    _ => assert!(std::str::from_utf8(rest).is_err()),
                }
                break;
            }
        }
    }
    understand(&String::from_utf8_lossy(sent));
}

fn understand(text: &str) {
    let lines = text.split('\n').take_while(|line| !line.is_empty()).count();
    match parse(text) {
        Ok(Request::Get) => assert_eq!(lines, 1),
        Ok(Request::Set(set)) => {
            let ranges: usize = set.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
            assert!(lines > set.peers.len() + ranges, "every line is one setting");
            for allowed in set.peers.iter().flat_map(|peer| &peer.allowed_ips) {
                assert_eq!(allowed.net, allowed.net.trunc());
            }
            // Whoever can be told by number is the same when names are known as well.
            assert!(parse_with(text, &|_| Some(1)).is_ok());
        }
        Err(error) => {
            assert!((1..=lines.max(1)).contains(&error.line));
            assert!(error.errno() > 0);
            assert!(error.to_string().len() <= MAX_ERROR, "{error}");
        }
    }
}
