//! The agents' door: gRPC for whoever proves to hold a node's key.
//!
//! The caller's certificate tells which node it is; the TLS handshake proved it, and [`serve`](crate::serve) puts the
//! node's identifier into the request. What a node may do is decided by the network's rules: here is only the way in
//! and out. Every call has a time limit, and the refusals carry the codes of the REST door.

mod calls;
mod raw;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};
use tonic::{Code, Status, Streaming};
use tower::Service;
use znet_api::convert::{invalid, network_id, verifying_key};
use znet_api::error::{CODE_KEY, Problem};
use znet_api::v1;
use znet_api::v1::controller_server::ControllerServer;
use znet_core::id::{Epoch, NodeId, Revision};
use znet_core::key::VerifyingKey;
use znet_core::map::Digest;

use crate::hub::Hub;
use crate::network::{Hosted, Resume, STREAM_BUFFER};
use crate::timely::{Timely, TooSlow};
use calls::{Calls, node, problem};
use raw::EventCodec;

/// Largest message that is taken from an agent.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Where the map's stream is.
const WATCH: &str = "/znet.v1.Controller/Watch";
/// How long an agent may take to say from where its stream goes on.
const FIRST_WORD: std::time::Duration = std::time::Duration::from_secs(10);

/// The node that proved its key on the connection; a request's extension.
#[derive(Clone, Copy, Debug)]
pub struct Caller(pub NodeId);

/// The agents' door as a service.
#[derive(Clone, Debug)]
pub struct Door {
    hub: Arc<Hub>,
    calls: ControllerServer<Calls>,
}

impl Door {
    /// The door to the networks of this hub.
    pub fn new(hub: Arc<Hub>) -> Self {
        let calls = ControllerServer::new(Calls::new(hub.clone())).max_decoding_message_size(MAX_REQUEST);
        Self { hub, calls }
    }
}

impl<B> Service<Request<B>> for Door
where
    B: axum::body::HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let hub = self.hub.clone();
        let mut calls = self.calls.clone();
        Box::pin(async move {
            let response = if request.uri().path() == WATCH {
                let codec = EventCodec;
                let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST);
                grpc.streaming(Watch(hub.clone()), request).await
            } else {
                let timely = |body| Timely::new(body, || Problem::from(TooSlow).to_status().into());
                calls.call(request.map(timely)).await?
            };
            hub.metrics().request("grpc", response.status().as_u16());
            Ok(with_code(response))
        })
    }
}

/// Gives a refusal of the library around the calls a code: those of ours have one. What cannot be decoded is a fault of
/// whoever sent it, though the library says `Internal`.
fn with_code(mut response: Response<Body>) -> Response<Body> {
    const STATUS: &str = "grpc-status";
    let headers = response.headers_mut();
    let Some(status) = headers.get(STATUS).filter(|_| !headers.contains_key(CODE_KEY)) else {
        return response;
    };
    let code = match Code::from_bytes(status.as_bytes()) {
        Code::Ok => return response,
        Code::OutOfRange | Code::ResourceExhausted => "too_large",
        Code::Unimplemented => "unknown_call",
        _ => "invalid_argument",
    };
    if Code::from_bytes(status.as_bytes()) == Code::Internal {
        headers.insert(STATUS, (Code::InvalidArgument as i32).into());
    }
    headers.insert(CODE_KEY, HeaderValue::from_static(code));
    response
}

/// The map's stream. Its events are encoded once for all agents, so they pass through here as bytes.
struct Watch(Arc<Hub>);

impl StreamingService<v1::WatchRequest> for Watch {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<v1::WatchRequest>>) -> Self::Future {
        let hub = self.0.clone();
        Box::pin(async move {
            let node = node(&request)?;
            let mut said = request.into_inner();
            let first = tokio::time::timeout(FIRST_WORD, said.message()).await;
            let first = first.map_err(|_| {
                Problem::new(408, "too_slow", "the stream said nothing to begin with").to_status()
            })??;
            let (hosted, resume, believes) = begin(&hub, first)?;
            let (out, events) = mpsc::channel(STREAM_BUFFER);
            tokio::spawn(hosted.serve_stream(node, resume, believes, said, out));
            Ok(tonic::Response::new(ReceiverStream::new(events)))
        })
    }
}

/// Which network a stream is for, from where it goes on, and which signing key its node believes.
type Begun = (Arc<Hosted>, Option<Resume>, Option<VerifyingKey>);

fn begin(hub: &Hub, first: Option<v1::WatchRequest>) -> Result<Begun, Status> {
    let Some(v1::watch_request::Say::Resume(resume)) = first.and_then(|first| first.say) else {
        return Err(problem(&invalid("say", "the first message of a stream must resume")));
    };
    let network = network_id(&resume.network).map_err(|error| problem(&error))?;
    let hosted = hub.network(network).map_err(|error| Problem::from(&error).to_status())?;
    let from = match resume.digest.as_slice() {
        [] => None,
        bytes => {
            let digest: [u8; 32] =
                bytes.try_into().map_err(|_| problem(&invalid("digest", "32 bytes expected")))?;
            Some(Resume {
                epoch: Epoch::new(resume.epoch),
                revision: Revision::new(resume.revision),
                digest: Digest::from_bytes(digest),
            })
        }
    };
    let believes = verifying_key(&resume.verifying_key).map_err(|error| problem(&error))?;
    Ok((hosted, from, believes))
}
