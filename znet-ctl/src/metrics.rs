//! Counters for Prometheus.
//!
//! Whatever has a bound has a counter here that tells when the bound was hit: `znet_bound_hit_total{bound="..."}`.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Networks that get time series of their own; beyond that only the totals are told.
pub const MAX_NETWORK_SERIES: usize = 1_000;

/// What a command was and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CommandLabels {
    /// The audit trail's word for it.
    pub kind: &'static str,
    /// `ok`, `unchanged`, or the code of the refusal.
    pub result: &'static str,
}

/// A bound by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BoundLabels {
    /// Its name.
    pub bound: &'static str,
}

/// A network by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NetworkLabels {
    /// Its name.
    pub network: String,
}

/// An answered HTTP or gRPC request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `rest` or `grpc`.
    pub door: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// What is told of one network when the counters are read.
#[derive(Clone, Debug, Default)]
pub struct NetworkFigures {
    /// Its name.
    pub name: String,
    /// Its revision.
    pub revision: u64,
    /// Its nodes.
    pub nodes: usize,
    /// Those of them that live.
    pub live: usize,
    /// Its containers.
    pub containers: usize,
    /// Nodes that have applied a later revision than this controller knows.
    pub ahead: usize,
    /// Containers whose key pair is being changed.
    pub rotating: usize,
    /// Whether it takes changes.
    pub writable: bool,
}

/// All counters of a controller process. Every field may be raised by anybody.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
    /// Commands by kind and result.
    pub commands: Family<CommandLabels, Counter>,
    /// Hits of bounds.
    pub bounds: Family<BoundLabels, Counter>,
    /// Requests answered.
    pub requests: Family<RequestLabels, Counter>,
    /// Deltas sent to agents.
    pub deltas: Counter,
    /// Those of them that stood for more than one published batch, as the agent was slow.
    pub coalesced: Counter,
    /// Snapshots sent to agents.
    pub snapshots: Counter,
    /// Snapshots made; each may be sent many times.
    pub snapshots_made: Counter,
    /// Network tasks that panicked and were started again.
    pub restarts: Counter,
    /// Absent ephemeral nodes that stay as members have heard them.
    pub absent_heard: Counter,
    /// Open streams of agents.
    pub streams: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    commit_seconds: Option<Histogram>,
    commit_commands: Option<Histogram>,
    networks: Gauge,
    read_only: Gauge,
    nodes: Gauge,
    live: Gauge,
    containers: Gauge,
    ahead: Gauge,
    rotating: Gauge,
    revision_of: Family<NetworkLabels, Gauge>,
    nodes_of: Family<NetworkLabels, Gauge>,
    live_of: Family<NetworkLabels, Gauge>,
    containers_of: Family<NetworkLabels, Gauge>,
}

impl Metrics {
    /// Counters that are all zero.
    pub fn new() -> Self {
        let commit_seconds = Histogram::new(exponential_buckets(0.000_25, 2.0, 16));
        let commit_commands = Histogram::new(exponential_buckets(1.0, 2.0, 9));
        let mut metrics = Self {
            registry: Registry::with_prefix("znet"),
            commit_seconds: Some(commit_seconds.clone()),
            commit_commands: Some(commit_commands.clone()),
            ..Self::default()
        };
        let mut registry = std::mem::take(&mut metrics.registry);
        let r = &mut registry;
        r.register("commands", "Commands decided, by kind and result", metrics.commands.clone());
        r.register("bound_hit", "How often a bound was hit", metrics.bounds.clone());
        r.register("requests", "Requests answered, by door and status", metrics.requests.clone());
        r.register("deltas_sent", "Deltas sent to agents", metrics.deltas.clone());
        r.register("deltas_coalesced", "Deltas that stood for several batches", metrics.coalesced.clone());
        r.register("snapshots_sent", "Snapshots sent to agents", metrics.snapshots.clone());
        r.register("snapshots_made", "Snapshots encoded", metrics.snapshots_made.clone());
        r.register("task_restarts", "Network tasks that panicked", metrics.restarts.clone());
        r.register(
            "absent_heard",
            "Answers of members who hear an absent node",
            metrics.absent_heard.clone(),
        );
        r.register("streams", "Open streams of agents", metrics.streams.clone());
        r.register("connections", "Open connections", metrics.connections.clone());
        r.register("handshakes_failed", "TLS handshakes that failed", metrics.handshakes_failed.clone());
        r.register("commit_seconds", "Time from a commit's begin until it is durable", commit_seconds);
        r.register("commit_commands", "Commands that one commit carries", commit_commands);
        r.register("networks", "Networks hosted", metrics.networks.clone());
        r.register("networks_read_only", "Networks that take no changes now", metrics.read_only.clone());
        r.register("nodes", "Nodes of all networks", metrics.nodes.clone());
        r.register("nodes_live", "Nodes that live", metrics.live.clone());
        r.register("containers", "Containers of all networks", metrics.containers.clone());
        r.register("nodes_ahead", "Nodes whose map is later than the controller's", metrics.ahead.clone());
        r.register("keys_rotating", "Containers whose key pair is being changed", metrics.rotating.clone());
        r.register("network_revision", "Revision of a network", metrics.revision_of.clone());
        r.register("network_nodes", "Nodes of a network", metrics.nodes_of.clone());
        r.register("network_nodes_live", "Nodes of a network that live", metrics.live_of.clone());
        r.register("network_containers", "Containers of a network", metrics.containers_of.clone());
        metrics.registry = registry;
        metrics
    }

    /// Notes how a command ended.
    pub fn command(&self, kind: &'static str, result: &'static str) {
        self.commands.get_or_create(&CommandLabels { kind, result }).inc();
    }

    /// Notes that a bound was hit.
    pub fn bound_hit(&self, bound: &'static str) {
        self.bounds.get_or_create(&BoundLabels { bound }).inc();
    }

    /// Notes that a request was answered.
    pub fn request(&self, door: &'static str, status: u16) {
        self.requests.get_or_create(&RequestLabels { door, status }).inc();
    }

    /// Notes a commit: how long it took and how many commands it carried.
    pub fn commit(&self, took: std::time::Duration, commands: usize) {
        if let Some(histogram) = &self.commit_seconds {
            histogram.observe(took.as_secs_f64());
        }
        if let Some(histogram) = &self.commit_commands {
            histogram.observe(u32::try_from(commands).unwrap_or(u32::MAX).into());
        }
    }

    /// All counters in Prometheus' text form, with the figures of the networks as they are now.
    pub fn text(&self, networks: &[NetworkFigures]) -> String {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let sum = |figure: fn(&NetworkFigures) -> usize| whole(networks.iter().map(figure).sum());
        self.networks.set(whole(networks.len()));
        self.read_only.set(sum(|network| usize::from(!network.writable)));
        self.nodes.set(sum(|network| network.nodes));
        self.live.set(sum(|network| network.live));
        self.containers.set(sum(|network| network.containers));
        self.ahead.set(sum(|network| network.ahead));
        self.rotating.set(sum(|network| network.rotating));
        for family in [&self.revision_of, &self.nodes_of, &self.live_of, &self.containers_of] {
            family.clear();
        }
        for network in networks.iter().take(MAX_NETWORK_SERIES) {
            let labels = NetworkLabels { network: network.name.clone() };
            let revision = i64::try_from(network.revision).unwrap_or(i64::MAX);
            self.revision_of.get_or_create(&labels).set(revision);
            self.nodes_of.get_or_create(&labels).set(whole(network.nodes));
            self.live_of.get_or_create(&labels).set(whole(network.live));
            self.containers_of.get_or_create(&labels).set(whole(network.containers));
        }
        let mut out = String::new();
        // Writing into a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}
