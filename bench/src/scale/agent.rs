//! One agent of the crowd: its connection, its stream, and what it believes. It differs from an agent that runs on a machine
//! in where its records lie ([`History`](super::history::History)), and in that it makes no devices.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use znet_api::agent_client::{AgentClient, connect};
use znet_api::convert::delta_from_wire;
use znet_api::tls::Identity;
use znet_api::v1;
use znet_api::v1::watch_event::Event;
use znet_api::v1::watch_request::Say;
use znet_core::id::Revision;
use znet_core::map::{Change, Delta, SetHash, SignedHead};

use super::crowd::Crowd;

/// How often an agent says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What an agent has verified and applied.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) head: SignedHead,
    pub(super) hash: SetHash,
}

/// One agent.
pub(super) struct Agent {
    pub(super) number: usize,
    pub(super) identity: Identity,
    pub(super) client: Option<AgentClient>,
}

impl Agent {
    pub(super) fn new(number: usize) -> Result<Self> {
        Ok(Self { number, identity: Identity::generate()?, client: None })
    }

    fn name(&self) -> String {
        format!("crowd-{}", self.number)
    }

    /// Connects and joins, as often as it takes.
    pub(super) async fn arrive(mut self, crowd: Arc<Crowd>) -> Self {
        let mut delays = backoff();
        while self.client.is_none() {
            match self.join(&crowd).await {
                Ok(client) => self.client = Some(client),
                Err(error) => {
                    crowd.failed(&error);
                    tokio::time::sleep(delays.next().unwrap_or(LONGEST)).await;
                }
            }
        }
        self
    }

    async fn join(&self, crowd: &Crowd) -> Result<AgentClient> {
        let token = &crowd.token;
        let (mut client, _) = connect(&token.controllers(), &self.identity, 0).await?;
        let request = v1::JoinRequest {
            network: crowd.network(),
            secret: token.secret.to_bytes().to_vec(),
            name: self.name(),
            endpoints: vec![format!("198.51.100.{}:51820", self.number % 250 + 1)],
            two_keys: true,
            ..Default::default()
        };
        client.join(request).await?;
        Ok(client)
    }

    /// Attaches so many containers, one after the other.
    pub(super) async fn populate(self, crowd: Arc<Crowd>, containers: usize) -> Result<Self> {
        for number in 0..containers {
            self.attach(&crowd, number).await?;
        }
        Ok(self)
    }

    /// Attaches a container of this node.
    pub(super) async fn attach(&self, crowd: &Crowd, number: usize) -> Result<Revision> {
        let name = format!("{}-c{number}", self.name());
        let mut client = self.client.clone().context("not connected")?;
        let request = v1::AttachRequest {
            network: crowd.network(),
            name,
            addresses: vec![],
            public_key: vec![],
            port: None,
        };
        Ok(Revision::new(client.attach(request).await?.into_inner().revision))
    }

    /// Detaches it.
    pub(super) async fn detach(&self, crowd: &Crowd, number: usize) -> Result<Revision> {
        let name = format!("{}-c{number}", self.name());
        let mut client = self.client.clone().context("not connected")?;
        let reply = client.detach(v1::DetachRequest { network: crowd.network(), name }).await?;
        Ok(Revision::new(reply.into_inner().revision))
    }

    /// Follows the map for ever, and comes back whenever the stream ends, with the pauses that agents make.
    pub(super) async fn follow(self, crowd: Arc<Crowd>, mut kept: Kept) {
        let mut delays = backoff();
        loop {
            let begun = Instant::now();
            let Err(error) = self.stream(&crowd, &mut kept).await;
            crowd.failed(&error);
            if begun.elapsed() > Duration::from_secs(30) {
                delays = backoff();
            }
            tokio::time::sleep(delays.next().unwrap_or(LONGEST)).await;
        }
    }

    async fn stream(&self, crowd: &Crowd, kept: &mut Kept) -> Result<std::convert::Infallible> {
        let mut client = self.join(crowd).await?;
        let (outbox, said) = mpsc::channel(16);
        let say = |say| v1::WatchRequest { say: Some(say) };
        let resume = v1::Resume {
            network: crowd.network(),
            epoch: kept.head.head.epoch.get(),
            revision: kept.head.head.revision.get(),
            digest: kept.head.head.digest.as_bytes().to_vec(),
            ..Default::default()
        };
        outbox.send(say(Say::Resume(resume))).await?;
        let mut events = client.watch(ReceiverStream::new(said)).await?.into_inner();
        let mut beat = tokio::time::interval(HEARTBEAT);
        let mut greeted = false;
        loop {
            tokio::select! {
                event = events.message() => {
                    let event = event?.and_then(|event| event.event).context("the stream ended")?;
                    let from = kept.head.head.revision;
                    kept.apply(event, crowd)?;
                    let revision = kept.head.head.revision;
                    crowd.applied(self.number, from, revision, !std::mem::replace(&mut greeted, true));
                    outbox.send(say(Say::Applied(v1::Applied { revision: revision.get() }))).await?;
                }
                _ = beat.tick() => outbox.send(say(Say::Heartbeat(v1::Heartbeat {}))).await?,
            }
        }
    }
}

impl Kept {
    /// Applies what verifies, with the checks of [`Member`](znet_core::map::Member).
    fn apply(&mut self, event: Event, crowd: &Crowd) -> Result<()> {
        let (delta, head) = match event {
            Event::Delta(wire) => delta_from_wire(&wire)?,
            Event::Head(head) => {
                let head = SignedHead::try_from(&head)?;
                let revision = head.head.revision;
                (Delta { from: revision, to: revision, changes: vec![] }, head)
            }
            Event::Ask(_) => return Ok(()),
            Event::Keys(_) => {
                bail!("a line of signing keys was sent to an agent that did not say which it believes")
            }
            Event::Snapshot(_) => bail!("a whole map was sent to an agent that has a recent one"),
        };
        ensure!(head.verifies(&crowd.token.verifying_key), "the head is not signed by the network's key");
        ensure!(
            delta.from == self.head.head.revision && delta.to == head.head.revision,
            "the delta does not fit"
        );
        let mut hash = self.hash.clone();
        for change in &delta.changes {
            if let Some(old) = crowd.history.at(change.key(), delta.from) {
                hash.remove(&old);
            }
            if let Change::Put(record) = change {
                hash.add(record);
            }
        }
        ensure!(hash.digest() == head.head.digest, "the records do not have the digest that the head signs");
        for change in delta.changes {
            let key = change.key();
            let record = match change {
                Change::Put(record) => Some(record),
                Change::Remove(_) => None,
            };
            crowd.history.put(key, delta.to, record);
        }
        *self = Self { head, hash };
        Ok(())
    }
}

/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(10);

/// The pauses of an agent whose controller is away.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(LONGEST)
        .without_max_times()
        .with_jitter()
        .build()
}
