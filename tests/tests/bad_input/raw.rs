//! Requests byte by byte: what a client library would not send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use znet_api::agent_client::tls_stream;
use znet_api::tls::{Identity, client_config};
use znet_tests::{Result, Served};

/// How long the controller may take to answer or to hang up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Value,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("no whole head")?;
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or(Value::Null);
        Ok(Self { status, head, body })
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim()
    }

    /// The code of a refusal, which must be a whole problem document.
    pub(crate) fn code(&self) -> Result<&str> {
        let whole = self.header("content-type") == "application/problem+json"
            && self.body["status"] == self.status
            && self.body["detail"].as_str().is_some_and(|detail| !detail.is_empty());
        let code = self.body["code"].as_str().filter(|code| !code.is_empty() && whole);
        code.with_context(|| format!("no problem document: {self:?}"))
    }
}

/// A request: its first line without the version, headers, and the body as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a [u8],
    pub(crate) token: Option<&'a [u8]>,
    pub(crate) body: &'a [u8],
}

impl Request<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.method.as_bytes(), b" ", self.path, b" HTTP/1.1\r\nhost: znet\r\n"].concat();
        bytes.extend(b"connection: close\r\ncontent-type: application/json\r\n");
        if let Some(token) = self.token {
            bytes.extend([b"authorization: Bearer ", token, b"\r\n"].concat());
        }
        bytes.extend(format!("content-length: {}\r\n\r\n", self.body.len()).bytes());
        bytes.extend(self.body);
        bytes
    }

    /// Sends it on a connection of its own.
    pub(crate) async fn ask(&self, served: &Served) -> Result<Answer> {
        let answer = send(served, &self.bytes()).await;
        answer.with_context(|| format!("{} {}", self.method, String::from_utf8_lossy(self.path)))
    }
}

/// Sends bytes and reads the answer to them.
pub(crate) async fn send(served: &Served, bytes: &[u8]) -> Result<Answer> {
    let told = exchange(served, None, bytes).await?;
    Answer::parse(&told).with_context(|| format!("{:?}", String::from_utf8_lossy(&told)))
}

/// Sends bytes, as a node where one is given, and reads until the controller hangs up.
pub(crate) async fn exchange(served: &Served, node: Option<&Identity>, bytes: &[u8]) -> Result<Vec<u8>> {
    let tls = Arc::new(client_config(&[served.pin], node, &["http/1.1"])?);
    let stream = tls_stream(&served.address.to_string(), tls, Some(served.pin)).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    // The controller may hang up before it has heard everything.
    let writing = async { to.write_all(bytes).await.and(to.flush().await) };
    let mut told = Vec::new();
    let reading = from.read_to_end(&mut told);
    let (_, read) = tokio::time::timeout(PATIENCE, async { tokio::join!(writing, reading) })
        .await
        .context("the controller neither answers nor hangs up")?;
    match read {
        Err(error) if told.is_empty() => bail!("no answer: {error}"),
        _ => Ok(told),
    }
}

/// A connection without TLS from one of this machine's addresses.
pub(crate) async fn connect_from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    socket.connect(to).await
}
