//! The calls that are asked and answered once.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Response, Status};
use znet_api::convert::{ConvertError, addresses, endpoints, invalid, name, network_id, port, verifying_key};
use znet_api::error::Problem;
use znet_api::v1;
use znet_api::v1::controller_server::Controller;
use znet_core::controller::{AccessPoint, Command, Rejection, Reply, TokenSecret};
use znet_core::id::{NodeId, Revision};
use znet_core::key::PublicKey;

use super::Caller;
use crate::actor::Actor;
use crate::hub::Hub;
use crate::network::{CommandError, Done, HEARTBEAT, Hosted};

/// How long a call may take when the caller sets no limit.
const DEFAULT_LIMIT: Duration = Duration::from_secs(30);
/// And at most, whatever the caller sets.
const LONGEST_LIMIT: Duration = Duration::from_secs(600);

/// Answers calls for the networks of a hub.
#[derive(Debug)]
pub(super) struct Calls {
    hub: Arc<Hub>,
}

impl Calls {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    fn network(&self, id: &[u8]) -> Result<Arc<Hosted>, Status> {
        let id = network_id(id).map_err(|error| problem(&error))?;
        self.hub.network(id).map_err(|error| Problem::from(&error).to_status())
    }

    /// The network, unless it is sure that the node is no member: what strangers ask for does not come into its queue.
    fn network_of(&self, node: NodeId, id: &[u8]) -> Result<Arc<Hosted>, Status> {
        let hosted = self.network(id)?;
        admit(node, hosted.may_know(node))?;
        Ok(hosted)
    }
}

/// Turns a stranger away.
fn admit(node: NodeId, known: Result<bool, CommandError>) -> Result<(), Status> {
    match known {
        Ok(true) => Ok(()),
        Ok(false) => Err(Problem::from(&Rejection::UnknownNode { node }).to_status()),
        Err(error) => Err(Problem::from(error).to_status()),
    }
}

/// The node that calls.
pub(super) fn node<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let missing = || {
        let why = "agents call with a client certificate over their own key, and this connection has none";
        Problem::new(401, "no_certificate", why).to_status()
    };
    request.extensions().get::<Caller>().map(|caller| caller.0).ok_or_else(missing)
}

/// A message that is not well formed, as a status.
pub(super) fn problem(error: &ConvertError) -> Status {
    Problem::from(error).to_status()
}

/// How long a call may take: the caller's `grpc-timeout` (gRPC over HTTP/2: digits and a unit), within bounds.
fn limit<T>(request: &Request<T>) -> Duration {
    let text = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    text.and_then(parse_timeout).unwrap_or(DEFAULT_LIMIT).min(LONGEST_LIMIT)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // The specification allows at most eight digits.
    let amount = digits.parse::<u32>().ok().filter(|_| digits.len() <= 8).map(u64::from)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Waits for a command within the time that the call allows.
async fn within(
    limit: Duration,
    command: impl Future<Output = Result<Done, CommandError>>,
) -> Result<Done, Status> {
    let result = tokio::time::timeout(limit, command).await.unwrap_or(Err(CommandError::DeadlineExceeded));
    result.map_err(|error| Problem::from(error).to_status())
}

/// A reply that does not belong to the command: a fault of this program.
fn unexpected(reply: &Reply) -> Status {
    tracing::error!(?reply, "a command was answered by the reply of another one");
    Problem::new(500, "internal", "the controller answered its own question wrongly").to_status()
}

#[tonic::async_trait]
impl Controller for Calls {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let (node, limit) = (node(&request)?, limit(&request));
        let asked = request.into_inner();
        let network = network_id(&asked.network).map_err(|error| problem(&error))?;
        let hosted = self.hub.network_of_agent(network).await;
        let hosted = hosted.map_err(|error| Problem::from(&error).to_status())?;
        // Before anything is changed: who cannot follow to the present key would be a member that believes nothing.
        if let Some(believes) = verifying_key(&asked.verifying_key).map_err(|error| problem(&error))? {
            hosted.can_follow(&believes).map_err(|error| Problem::from(error).to_status())?;
        }
        let secret = match asked.secret.as_slice() {
            [] => None,
            bytes => Some(TokenSecret::from_bytes(
                bytes.try_into().map_err(|_| problem(&invalid("secret", "32 bytes expected")))?,
            )),
        };
        let command = Command::Join {
            secret,
            node,
            name: name(&asked.name).map_err(|error| problem(&error))?,
            endpoints: endpoints(&asked.endpoints).map_err(|error| problem(&error))?,
            two_keys: asked.two_keys,
        };
        let done = within(limit, hosted.execute(command, Actor::Node(node))).await?;
        let Reply::Joined { name } = done.reply else { return Err(unexpected(&done.reply)) };
        let heartbeat_millis = u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(v1::JoinReply { name: name.to_string(), heartbeat_millis }))
    }

    type WatchStream = tokio_stream::Empty<Result<v1::WatchEvent, Status>>;

    /// Never called: the door takes the map's stream aside, as its events are encoded already.
    async fn watch(
        &self,
        _: Request<tonic::Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("the stream is served elsewhere"))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Result<Response<v1::AttachReply>, Status> {
        let (node, limit) = (node(&request)?, limit(&request));
        let asked = request.into_inner();
        let hosted = self.network_of(node, &asked.network)?;
        let public_key = match asked.public_key.as_slice() {
            [] => None,
            bytes => Some(PublicKey::from_bytes(
                bytes.try_into().map_err(|_| problem(&invalid("public_key", "32 bytes expected")))?,
            )),
        };
        let command = Command::Attach {
            node,
            name: name(&asked.name).map_err(|error| problem(&error))?,
            addresses: addresses(&asked.addresses).map_err(|error| problem(&error))?,
            public_key,
            port: port(asked.port).map_err(|error| problem(&error))?,
        };
        let done = within(limit, hosted.execute(command, Actor::Node(node))).await?;
        let Reply::Attached { container, private_key } = done.reply else {
            return Err(unexpected(&done.reply));
        };
        Ok(Response::new(v1::AttachReply {
            container: Some((&container).into()),
            private_key: private_key.map(|key| key.to_bytes().to_vec()).unwrap_or_default(),
            revision: done.revision.get(),
        }))
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::DetachReply>, Status> {
        let (node, limit) = (node(&request)?, limit(&request));
        let asked = request.into_inner();
        let hosted = self.network_of(node, &asked.network)?;
        let name = name(&asked.name).map_err(|error| problem(&error))?;
        let command = Command::Detach { node, name };
        let done = within(limit, hosted.execute(command, Actor::Node(node))).await?;
        Ok(Response::new(v1::DetachReply { revision: done.revision.get() }))
    }

    async fn offer_key(
        &self,
        request: Request<v1::OfferKeyRequest>,
    ) -> Result<Response<v1::OfferKeyReply>, Status> {
        let (node, limit) = (node(&request)?, limit(&request));
        let asked = request.into_inner();
        let hosted = self.network_of(node, &asked.network)?;
        let name = name(&asked.name).map_err(|error| problem(&error))?;
        let key = <[u8; 32]>::try_from(asked.public_key.as_slice());
        let key = key.map_err(|_| problem(&invalid("public_key", "32 bytes expected")))?;
        let command = Command::OfferKey { node, name, public_key: PublicKey::from_bytes(key) };
        let done = within(limit, hosted.execute(command, Actor::Node(node))).await?;
        Ok(Response::new(v1::OfferKeyReply { revision: done.revision.get() }))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        let (node, limit) = (node(&request)?, limit(&request));
        let asked = request.into_inner();
        let hosted = self.network_of(node, &asked.network)?;
        let endpoints = endpoints(&asked.endpoints).map_err(|error| problem(&error))?;
        let command = Command::SetEndpoints { node, endpoints };
        let done = within(limit, hosted.execute(command, Actor::Node(node))).await?;
        Ok(Response::new(v1::ReportReply { revision: done.revision.get() }))
    }

    async fn offer_access(
        &self,
        request: Request<v1::OfferAccessRequest>,
    ) -> Result<Response<v1::OfferAccessReply>, Status> {
        let (node, limit) = (node(&request)?, limit(&request));
        let asked = request.into_inner();
        let hosted = self.network_of(node, &asked.network)?;
        let public_key = <[u8; 32]>::try_from(asked.public_key.as_slice());
        let public_key = public_key.map_err(|_| problem(&invalid("public_key", "32 bytes expected")))?;
        let port = u16::try_from(asked.port).map_err(|error| problem(&invalid("port", error)))?;
        let command = Command::OfferAccess {
            node,
            name: name(&asked.name).map_err(|error| problem(&error))?,
            point: AccessPoint { public_key: PublicKey::from_bytes(public_key), port },
        };
        let done = within(limit, hosted.execute(command, Actor::Node(node))).await?;
        Ok(Response::new(v1::OfferAccessReply { revision: done.revision.get() }))
    }

    async fn wait_applied(
        &self,
        request: Request<v1::WaitAppliedRequest>,
    ) -> Result<Response<v1::WaitAppliedReply>, Status> {
        let (node, limit) = (node(&request)?, limit(&request));
        let asked = request.into_inner();
        let hosted = self.network(&asked.network)?;
        // No command asks the task here, so what this controller knows decides.
        admit(node, hosted.read(|network, _| network.node(&node).is_some()))?;
        // A little before the caller gives up, so that it hears who lags.
        let deadline = Instant::now() + limit - (limit / 10).min(Duration::from_millis(200));
        let waited = hosted.wait_applied(Revision::new(asked.revision), deadline).await;
        let lagging = waited.err().unwrap_or_default();
        let applied = lagging.is_empty();
        let lagging = lagging.iter().map(ToString::to_string).collect();
        Ok(Response::new(v1::WaitAppliedReply { applied, lagging }))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveReply>, Status> {
        let (node, limit) = (node(&request)?, limit(&request));
        let hosted = self.network_of(node, &request.into_inner().network)?;
        within(limit, hosted.execute(Command::RemoveNode { node }, Actor::Node(node))).await?;
        Ok(Response::new(v1::LeaveReply {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_at_most_eight_digits_and_a_unit() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "5", "123456789S", "-1S", "5x", "é"] {
            assert_eq!(parse_timeout(bad), None, "{bad:?}");
        }
    }
}
