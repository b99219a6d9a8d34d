//! Nodes that are nothing but a connection: they join, attach and listen as agents do, and make no devices.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use tokio_stream::wrappers::ReceiverStream;
use znet_api::agent_client::{AgentClient, connect};
use znet_api::convert::delta_from_wire;
use znet_api::tls::Identity;
use znet_api::token::JoinToken;
use znet_api::v1;
use znet_api::v1::watch_event::Event;
use znet_api::v1::watch_request::Say;
use znet_core::id::Revision;
use znet_core::map::{ContainerRecord, Member, Record, SignedHead};

use crate::Result;

/// A node of the fleet.
pub struct FleetNode {
    token: JoinToken,
    identity: Identity,
    client: AgentClient,
    endpoint: usize,
    name: String,
}

/// What a controller acknowledged.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// The container's name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The revision that holds it.
    pub revision: Revision,
}

impl FleetNode {
    /// Joins the token's network as node `number` of a fleet.
    ///
    /// # Errors
    /// The controller cannot be reached or refuses.
    pub async fn join(token: &JoinToken, fleet: &str, number: usize) -> Result<Self> {
        let identity = Identity::generate()?;
        let (mut client, endpoint) = connect(&token.controllers(), &identity, 0).await?;
        let name = format!("{fleet}-{number}");
        let network = token.network.as_bytes().to_vec();
        let secret = token.secret.to_bytes().to_vec();
        let endpoints = vec![format!("198.51.100.{}:51820", number % 250 + 1)];
        client
            .join(v1::JoinRequest {
                network,
                secret,
                name: name.clone(),
                endpoints,
                two_keys: true,
                ..Default::default()
            })
            .await?;
        Ok(Self { token: token.clone(), identity, client, endpoint, name })
    }

    /// Connects anew, as the same node, to the next controller where there are several.
    ///
    /// # Errors
    /// The controller cannot be reached.
    pub async fn reconnect(&mut self) -> Result {
        let next = self.endpoint.wrapping_add(1);
        (self.client, self.endpoint) = connect(&self.token.controllers(), &self.identity, next).await?;
        Ok(())
    }

    /// Joins many at once.
    ///
    /// # Errors
    /// As [`FleetNode::join`].
    pub async fn join_all(token: &JoinToken, fleet: &str, count: usize) -> Result<Vec<Self>> {
        let joining = (0..count).map(|number| Self::join(token, fleet, number));
        futures_util::future::try_join_all(joining).await
    }

    fn network(&self) -> Vec<u8> {
        self.token.network.as_bytes().to_vec()
    }

    /// Attaches container `number` of this node.
    ///
    /// # Errors
    /// The controller cannot be reached or refuses.
    pub async fn attach(&mut self, number: usize) -> Result<Acknowledged> {
        let name = format!("{}-c{number}", self.name);
        let request = v1::AttachRequest {
            network: self.network(),
            name,
            addresses: vec![],
            public_key: vec![],
            port: None,
        };
        let reply = self.client.attach(request).await?.into_inner();
        let record = ContainerRecord::try_from(reply.container.as_ref().context("no container")?)?;
        let addresses = record.addresses().collect();
        Ok(Acknowledged { name: record.name.to_string(), addresses, revision: Revision::new(reply.revision) })
    }

    /// Detaches it.
    ///
    /// # Errors
    /// The controller cannot be reached or refuses.
    pub async fn detach(&mut self, number: usize) -> Result {
        let name = format!("{}-c{number}", self.name);
        self.client.detach(v1::DetachRequest { network: self.network(), name }).await?;
        Ok(())
    }

    /// Opens the map's stream.
    ///
    /// # Errors
    /// The controller cannot be reached or refuses.
    pub async fn watch(&mut self) -> Result<Watcher> {
        let (said, outbox) = tokio::sync::mpsc::channel(16);
        let say = |say| v1::WatchRequest { say: Some(say) };
        let resume = v1::Resume { network: self.network(), ..Default::default() };
        said.send(say(Say::Resume(resume))).await?;
        let events = self.client.watch(ReceiverStream::new(outbox)).await?.into_inner();
        let member = Member::new(self.token.network, self.token.verifying_key);
        Ok(Watcher { events, said, member, parts: Vec::new() })
    }
}

/// A node's map, verified and applied as agents do.
pub struct Watcher {
    events: tonic::Streaming<v1::WatchEvent>,
    said: tokio::sync::mpsc::Sender<v1::WatchRequest>,
    member: Member,
    parts: Vec<Record>,
}

impl Watcher {
    /// What was verified and applied so far.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Waits for the next event, applies it and says so. Returns the revision that stands then.
    ///
    /// # Errors
    /// The stream ended, or what came does not verify.
    pub async fn next(&mut self) -> Result<Revision> {
        let event = self.events.message().await?.and_then(|event| event.event);
        match event.context("the stream ended")? {
            Event::Delta(wire) => {
                let (delta, head) = delta_from_wire(&wire)?;
                self.member.apply_delta(&delta, &head)?;
            }
            Event::Snapshot(part) => {
                for record in &part.records {
                    self.parts.push(Record::try_from(record)?);
                }
                if let Some(head) = &part.head {
                    self.member
                        .apply_snapshot(std::mem::take(&mut self.parts), &SignedHead::try_from(head)?)?;
                }
            }
            Event::Head(_) | Event::Ask(_) => {}
            // It did not say which key it believes, so it is told of no other.
            Event::Keys(_) => bail!("a line of signing keys that nobody asked for"),
        }
        let revision = self.member.revision();
        let applied = Say::Applied(v1::Applied { revision: revision.get() });
        if self.said.send(v1::WatchRequest { say: Some(applied) }).await.is_err() {
            bail!("the stream ended");
        }
        Ok(revision)
    }
}
