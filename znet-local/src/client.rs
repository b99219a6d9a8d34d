//! A blocking client: one connection, one request, one answer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{
    AttachRequest, AttachedContainer, CheckRequest, Checked, CollectRequest, Collected, DetachOwnedRequest,
    Detached, HandOverRequest, LendRequest, Readiness, ReadyRequest,
};

/// Largest answer in bytes that is read.
const MAX_ANSWER: usize = 16 << 20;
/// Most header lines that are read.
const MAX_HEADERS: usize = 32;

/// What the agent said when it refused: the parts of a problem document (RFC 9457) that a program can go by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// A stable machine-readable code.
    pub code: String,
    /// What happened, to what.
    pub detail: String,
}

/// Why the agent gave no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket, or it may not be used.
    #[error("the agent cannot be reached at {path}: {source}; is `znet-agent run` running?")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The agent refused.
    #[error("{}", .0.detail)]
    Refused(Refusal),
    /// The connection ended before the answer did: the agent was stopped meanwhile.
    #[error("the agent went away while it was asked: {0}")]
    Lost(String),
    /// It took too long.
    #[error("the agent did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// Whatever answered is no agent of a version that this one understands.
    #[error("the agent's answer cannot be understood: {0}")]
    Protocol(String),
}

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the agent that serves `socket`, which waits at most so long for an answer. Nothing is connected yet.
    pub fn new(socket: &Path, patience: Duration) -> Self {
        Self { socket: socket.to_owned(), patience }
    }

    /// Attaches a container. What the request has the agent wait comes on top of the client's patience.
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub fn attach(&self, request: &AttachRequest) -> Result<AttachedContainer, ClientError> {
        let waits = [request.wait_millis, request.wait_controller_millis];
        let waits = waits.into_iter().flatten().fold(0, u64::saturating_add);
        self.call("/v1/attach", request, self.patience.saturating_add(Duration::from_millis(waits)))
    }

    /// Has a device made that the caller's runtime moves into its container by itself. What the request has the agent wait
    /// comes on top of the client's patience.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn lend(&self, request: &LendRequest) -> Result<AttachedContainer, ClientError> {
        let waits = Duration::from_millis(request.wait_controller_millis.unwrap_or_default());
        self.call("/v1/owned/lend", request, self.patience.saturating_add(waits))
    }

    /// Says into which namespace the runtime is going to move it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn hand_over(&self, request: &HandOverRequest) -> Result<AttachedContainer, ClientError> {
        self.call("/v1/owned/hand-over", request, self.patience)
    }

    /// Takes away what an owner made.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn detach(&self, request: &DetachOwnedRequest) -> Result<Detached, ClientError> {
        self.call("/v1/owned/detach", request, self.patience)
    }

    /// Asks whether what an owner made is as it should be.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn check(&self, request: &CheckRequest) -> Result<Checked, ClientError> {
        self.call("/v1/owned/check", request, self.patience)
    }

    /// Takes away what a runtime does not know any more.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn collect(&self, request: &CollectRequest) -> Result<Collected, ClientError> {
        self.call("/v1/owned/collect", request, self.patience)
    }

    /// Asks whether a container could be attached now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ready(&self, request: &ReadyRequest) -> Result<Readiness, ClientError> {
        self.call("/v1/ready", request, self.patience)
    }

    fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Protocol(error.to_string()))?;
        let answer = self.exchange(path, &body, patience)?;
        let (status, body) = parse(&answer)?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(body).map_err(|error| ClientError::Protocol(error.to_string()));
        }
        let unknown = || Refusal {
            status,
            code: "unknown".to_owned(),
            detail: format!("the agent answers {path} with status {status}"),
        };
        Err(ClientError::Refused(serde_json::from_slice(body).unwrap_or_else(|_| unknown())))
    }

    /// The whole answer, up to the end of the connection.
    fn exchange(&self, path: &str, body: &[u8], patience: Duration) -> Result<Vec<u8>, ClientError> {
        let deadline = Instant::now() + patience;
        let lost = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::Timeout(patience),
            _ => ClientError::Lost(error.to_string()),
        };
        let left = || match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ClientError::Timeout(patience)),
            left => Ok(Some(left)),
        };
        let mut stream = UnixStream::connect(&self.socket)
            .map_err(|source| ClientError::Unreachable { path: self.socket.clone(), source })?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: znet-agent\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        for part in [head.as_bytes(), body] {
            stream.set_write_timeout(left()?).map_err(lost)?;
            stream.write_all(part).map_err(lost)?;
        }
        let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            stream.set_read_timeout(left()?).map_err(lost)?;
            let read = match stream.read(&mut chunk) {
                Ok(0) => return Ok(answer),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(error)),
            };
            answer.extend_from_slice(chunk.get(..read).unwrap_or_default());
            if answer.len() > MAX_ANSWER {
                return Err(ClientError::Protocol("it is too long".to_owned()));
            }
        }
    }
}

/// The status and the body of a whole answer, which has to be as long as it says.
fn parse(answer: &[u8]) -> Result<(u16, &[u8]), ClientError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(answer) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Err(ClientError::Lost("no answer came".to_owned())),
        Err(error) => return Err(ClientError::Protocol(error.to_string())),
    };
    let status = response.code.ok_or_else(|| ClientError::Protocol("no status".to_owned()))?;
    let body = answer.get(head..).unwrap_or_default();
    let said = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = said.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse::<usize>().ok());
    // Whoever says how long a body is does not send it in chunks, which are not understood here.
    match length {
        Some(length) if length == body.len() => Ok((status, body)),
        Some(_) => Err(ClientError::Lost("the answer is cut short".to_owned())),
        None => Err(ClientError::Protocol("the length of the answer is not said".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers one request with these bytes, and hangs up; with `None` it waits for the other side to do so.
    fn agent(answer: Option<String>) -> (tempfile::TempDir, Client, JoinHandle<()>) {
        let dir = tempfile::Builder::new().prefix("zt-local-").tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap();
            assert!(request.get(..read).unwrap().starts_with(b"POST /v1/ready HTTP/1.1\r\n"));
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                None => while stream.read(&mut request).unwrap_or(0) > 0 {},
            }
        });
        (dir, Client::new(&socket, Duration::from_millis(300)), serving)
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn ask(answer: Option<String>) -> Result<Readiness, ClientError> {
        let (_dir, client, serving) = agent(answer);
        let said = client.ready(&ReadyRequest::default());
        serving.join().unwrap();
        said
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let said = ask(Some(answer("200 OK", r#"{"engine":true,"controller":false}"#)));
        assert!(matches!(said, Ok(Readiness { engine: true, controller: false })));
    }

    #[test]
    fn a_refusal_keeps_its_code_and_words() {
        let problem = r#"{"type":"about:blank","status":404,"code":"unknown_network","detail":"no"}"#;
        let said = ask(Some(answer("404 Not Found", problem)));
        let Err(ClientError::Refused(refusal)) = said else { unreachable!("{said:?}") };
        assert_eq!((refusal.status, refusal.code.as_str()), (404, "unknown_network"));
        let said = ask(Some(answer("500 Oops", "oops")));
        assert!(matches!(said, Err(ClientError::Refused(Refusal { status: 500, .. }))));
    }

    #[test]
    fn what_is_cut_short_was_lost_and_what_is_no_answer_is_not_understood() {
        for lost in ["", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}"] {
            assert!(matches!(ask(Some(lost.to_owned())), Err(ClientError::Lost(_))), "{lost:?}");
        }
        for garbage in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n{}", &answer("200 OK", "7")] {
            assert!(matches!(ask(Some(garbage.to_owned())), Err(ClientError::Protocol(_))), "{garbage:?}");
        }
    }

    #[test]
    fn an_agent_that_says_nothing_is_not_waited_for_for_ever_and_none_is_unreachable() {
        assert!(matches!(ask(None), Err(ClientError::Timeout(_))));
        let nobody = Client::new(Path::new("/nonexistent/agent.sock"), Duration::from_secs(1));
        assert!(matches!(nobody.ready(&ReadyRequest::default()), Err(ClientError::Unreachable { .. })));
    }
}
