//! What a network's task has to know of other controllers that serve the same network, where there are any.
//!
//! Who is alive is each controller's own knowledge and is not stored, but for two things. Ephemeral nodes are collected
//! when nobody has seen them for long, and a controller that they are not connected to never sees them. So each reports
//! its own from time to time, and whoever is about to collect some asks for the others' reports first. If two collect the
//! same node, the second finds it gone.
//!
//! And a change of keys goes on when all nodes have applied its stage. So while one is under way each controller reports
//! which nodes it has and what all of them have applied, and looks at the others' reports. If two lead the same stage on, the
//! second finds it done.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use znet_core::controller::{Elsewhere, MemberView, Network, NodeLifetime};
use znet_core::id::{NodeId, Revision};
use znet_core::time::Timestamp;

use super::suspects::LOOK_EVERY;
use super::{Hosted, Resume};
use crate::store::{Applied, PRESENT_FOR};

/// How often ephemeral nodes are reported: two reports may get lost.
const REPORT_EVERY: Duration = Duration::from_secs(PRESENT_FOR.as_secs() / 4);

/// How long it takes at least until what nodes have applied is reported or looked for again: the longer the more there are, as a
/// report names all of them.
const APPLIED_EVERY: Duration = Duration::from_millis(500);
const APPLIED_EVERY_EACH: Duration = Duration::from_millis(1);

/// How long a stream waits for what its agent has heard of elsewhere.
const CATCH_UP: Duration = Duration::from_secs(2);

/// The others, as one network's task sees them.
#[derive(Debug)]
pub(super) struct Others {
    /// Their commits, and its own; nothing where there are no others.
    newest: Option<watch::Receiver<Revision>>,
    reported: Option<Instant>,
    looked: Option<Instant>,
    /// What was told last of what nodes have applied, and when.
    told: Option<(Instant, Applied)>,
    /// When the others' reports of that were looked at last.
    heard: Option<Instant>,
    elsewhere: Elsewhere,
}

impl Others {
    pub(super) fn of(hosted: &Hosted) -> Self {
        let store = &hosted.common.store;
        let newest = store.shared().map(|_| store.revisions(hosted.id));
        Self {
            newest,
            reported: None,
            looked: None,
            told: None,
            heard: None,
            elsewhere: Elsewhere::default(),
        }
    }

    /// Waits until something was committed, or the network is gone.
    pub(super) async fn heard(&mut self) {
        let Some(newest) = &mut self.newest else { return std::future::pending().await };
        if newest.changed().await.is_err() {
            // Said once: the network is gone, which whoever looks finds out.
            self.newest = None;
        }
    }

    /// Whether something was committed that a network at this revision lacks, as far as was heard.
    pub(super) fn is_ahead_of(&self, revision: Revision) -> bool {
        self.newest.as_ref().is_none_or(|newest| *newest.borrow() > revision)
    }

    /// Has the others ask their members about these nodes.
    pub(super) async fn ask(&self, hosted: &Hosted, nodes: &[NodeId]) {
        let Some(shared) = hosted.common.store.shared().filter(|_| !nodes.is_empty()) else { return };
        if let Err(error) = shared.report_suspects(hosted.id, nodes).await {
            tracing::debug!(network = %hosted.name, %error, "the others could not be asked about absent nodes");
        }
    }

    /// Asks the members here about the nodes of which other controllers want to know.
    pub(super) async fn pass_on_questions(&mut self, hosted: &Hosted) {
        let Some(shared) = hosted.common.store.shared() else { return };
        if hosted.presence.live() == 0 || self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        match shared.suspects_elsewhere(hosted.id).await {
            Ok(nodes) if nodes.is_empty() => {}
            Ok(nodes) => hosted.ask(&nodes),
            Err(error) => {
                tracing::debug!(network = %hosted.name, %error, "the others' questions are not known");
            }
        }
    }

    /// Tells the others which ephemeral nodes are connected here, or heard by who is.
    pub(super) async fn report(&mut self, hosted: &Hosted, network: &Network) {
        let Some(shared) = hosted.common.store.shared() else { return };
        let lately = self.reported.is_some_and(|reported| reported.elapsed() < REPORT_EVERY);
        if !hosted.presence.take_vouched_anew() && lately {
            return;
        }
        let now = hosted.common.clock.steady();
        let ephemeral = network.nodes().filter(|node| node.lifetime == NodeLifetime::Ephemeral);
        let presence = &hosted.presence;
        let is_present =
            |node: &NodeId| presence.of(node, now).0 || presence.is_vouched(node, PRESENT_FOR, now);
        let live: Vec<NodeId> = ephemeral.map(|node| node.id).filter(is_present).collect();
        if live.is_empty() {
            return;
        }
        self.reported = Some(Instant::now());
        if let Err(error) = shared.report_present(hosted.id, &live).await {
            tracing::debug!(network = %hosted.name, %error, "ephemeral nodes could not be reported");
        }
    }

    /// While keys are being changed: tells the others what the nodes here have applied, and hears what theirs have.
    pub(super) async fn exchange_applied(&mut self, hosted: &Hosted, network: &Network, now: Timestamp) {
        let Some(shared) = hosted.common.store.shared() else { return };
        if network.rotations() == 0 {
            (self.told, self.heard) = (None, None);
            return self.elsewhere.forget();
        }
        let (nodes, revision) = hosted.presence.live_applied();
        let epoch = network.head().epoch;
        let alone = network.nodes().len() == nodes.len();
        let mine = Applied { epoch, revision, nodes };
        if self.has_to_tell(&mine) {
            match shared.report_applied(hosted.id, &mine).await {
                Ok(()) => self.told = Some((Instant::now(), mine)),
                Err(error) => {
                    tracing::debug!(network = %hosted.name, %error, "what nodes have applied could not be reported");
                }
            }
        }
        if alone || self.heard.is_some_and(|heard| heard.elapsed() < pause(network.nodes().len())) {
            return;
        }
        self.heard = Some(Instant::now());
        match shared.applied_elsewhere(hosted.id).await {
            Ok(reports) => {
                // Revisions of another epoch are another history.
                let reports = reports.into_iter().filter(|report| report.epoch == epoch);
                let members = reports.flat_map(|Applied { revision, nodes, .. }| {
                    nodes.into_iter().map(move |node| (node, revision))
                });
                self.elsewhere.hear(network, members, now);
            }
            Err(error) => {
                tracing::debug!(network = %hosted.name, %error, "what the others' nodes have applied is not known");
            }
        }
    }

    fn has_to_tell(&self, applied: &Applied) -> bool {
        let Some((at, told)) = &self.told else { return !applied.nodes.is_empty() };
        let since = at.elapsed();
        since >= REPORT_EVERY || (told != applied && since >= pause(applied.nodes.len()))
    }

    /// What is known of a member, here and by what the others told last.
    pub(super) fn view(&self, node: &NodeId, here: MemberView) -> MemberView {
        self.elsewhere.view(node, here)
    }
}

/// How long reports of so many nodes are left alone.
fn pause(nodes: usize) -> Duration {
    let each = APPLIED_EVERY_EACH * u32::try_from(nodes).unwrap_or(u32::MAX);
    REPORT_EVERY.min(APPLIED_EVERY + each)
}

impl Hosted {
    /// Ephemeral nodes that no controller has seen for the network's time to live. None while the others cannot be asked.
    pub async fn overdue(&self) -> Vec<NodeId> {
        let now = self.common.clock.steady();
        let absent = || {
            let ttl = self.read(|network, _| network.conf().ephemeral_ttl());
            ttl.map(|ttl| self.presence.overdue(ttl, now)).unwrap_or_default()
        };
        let before = absent();
        let Some(shared) = self.common.store.shared().filter(|_| !before.is_empty()) else { return before };
        match shared.present_elsewhere(self.id).await {
            Ok(present) => {
                // Each gets a full term anew, as if it had just come.
                let _ = self.read(|network, _| {
                    for node in present.iter().filter_map(|node| network.node(node)) {
                        self.presence.admit(node.id, node.lifetime, now);
                    }
                });
                absent()
            }
            Err(error) => {
                tracing::debug!(network = %self.name, %error, "not collecting while others cannot be asked");
                Vec::new()
            }
        }
    }

    /// Waits a moment for what an agent has applied already: it may come from another controller, and have heard of it there
    /// before this one did.
    pub(super) async fn catch_up_with(&self, resume: &Resume) {
        let older = self.read(|_, head| resume.epoch < head.head.epoch).unwrap_or_default();
        if older || self.common.store.shared().is_none() {
            return;
        }
        let mut newest = self.feed.subscribe();
        let ahead = newest.wait_for(|revision| *revision >= resume.revision);
        let _ = tokio::time::timeout(CATCH_UP, ahead).await;
    }
}
