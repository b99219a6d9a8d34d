//! Hearing of what others do: a watch over the heads of all networks and over what tells that networks or operators changed.
//!
//! It carries no data. Who hears of a revision asks the log for what led there, which is the controllers' own and not
//! etcd's history: a watch that was cut off or fell behind etcd's compaction begins anew and has missed nothing.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use tokio::time::Instant;

use super::cluster::{kv, translate};
use super::encode::{revision, text};
use super::inner::Inner;
use crate::store::StoreError;

/// How long a member may take to begin a watch.
const BEGIN: Duration = Duration::from_millis(700);
/// How often a member that is watched is asked how far it is, which it answers whatever else there is to say.
const BEAT: Duration = Duration::from_millis(500);
/// After how long without a word it counts as gone.
const SILENCE: Duration = Duration::from_millis(1700);
/// How long to wait before the next member is tried.
const PAUSE: Duration = Duration::from_millis(100);
/// After how long without a watch the cluster counts as out of reach: an election is over by then.
const LOST_AFTER: Duration = Duration::from_secs(3);

/// Watches until the store is closed.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut heard = Instant::now();
    while !inner.closed.is_cancelled() {
        if let Some((at, client)) = inner.cluster.member() {
            // A task of its own: the client library panics on an answer that makes no sense to it.
            let mut watching = tokio::spawn(watch(inner.clone(), client));
            let ended = tokio::select! {
                () = inner.closed.cancelled() => {
                    watching.abort();
                    return;
                }
                ended = &mut watching => ended,
            };
            let mut silent = true;
            match ended {
                Ok(Ok(last)) => (heard, silent) = (last, false),
                Ok(Err(error)) => tracing::debug!(%error, "a member of the cluster cannot be watched"),
                Err(panic) => tracing::warn!(%panic, "the watch of a member of the cluster failed"),
            }
            inner.cluster.failed(at);
            // Not before another member was tried: it may have been this process that slept.
            if silent && heard.elapsed() > LOST_AFTER && inner.cluster.set_reachable(false) {
                tracing::warn!("no member of the cluster answers");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Watches through one member; returns when it was heard of last.
async fn watch(inner: Arc<Inner>, client: Client) -> Result<Instant, StoreError> {
    let late = |_| StoreError::Unavailable { why: "no answer".to_owned() };
    let prefix = inner.names.now();
    let options = GetOptions::new().with_prefix();
    let now = kv_get(&client, prefix.clone(), options);
    let now = tokio::time::timeout(BEGIN, now).await.map_err(late)??;
    let at = now.header().map_or(0, etcd_client::ResponseHeader::revision);
    take_stock(&inner, &now)?;
    let options = WatchOptions::new().with_prefix().with_start_revision(at.saturating_add(1));
    let mut watching = client.watch_client();
    let begun = tokio::time::timeout(BEGIN, watching.watch(prefix, Some(options))).await.map_err(late)?;
    let (mut asking, mut events) = begun.map_err(|error| translate(&error))?.split();
    if inner.cluster.set_reachable(true) {
        tracing::info!("the cluster answers again");
    }
    let (mut heard, mut beat) = (Instant::now(), tokio::time::interval(BEAT));
    loop {
        tokio::select! {
            message = events.message() => match message {
                Ok(Some(message)) if !message.canceled() => {
                    heard = Instant::now();
                    for event in message.events() {
                        let Some(pair) = event.kv() else { continue };
                        let there = event.event_type() == EventType::Put;
                        happened(&inner, text("a key", pair.key())?, there.then(|| pair.value()))?;
                    }
                }
                // Cancelled, as the member has no leader or compacted too much; ended; or broken.
                _ => return Ok(heard),
            },
            _ = beat.tick() => {
                if heard.elapsed() > SILENCE || asking.request_progress().await.is_err() {
                    return Ok(heard);
                }
            }
        }
    }
}

async fn kv_get(
    client: &Client,
    key: String,
    options: GetOptions,
) -> Result<etcd_client::GetResponse, StoreError> {
    kv(client).get(key, Some(options)).await.map_err(|error| translate(&error))
}

/// What there is when a watch begins. Whatever happened before was missed, so everything may have changed.
fn take_stock(inner: &Inner, now: &etcd_client::GetResponse) -> Result<(), StoreError> {
    let mut gone = inner.known();
    for pair in now.kvs() {
        let key = text("a key", pair.key())?;
        if let Some(network) = inner.names.network_of_head(key) {
            gone.retain(|known| *known != network);
            inner.announce(network, revision(pair.value())?);
        }
    }
    gone.into_iter().for_each(|network| inner.forget(network));
    inner.catalogue_changed();
    Ok(())
}

fn happened(inner: &Inner, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
    match (inner.names.network_of_head(key), value) {
        (Some(network), Some(value)) => inner.announce(network, revision(value)?),
        (Some(network), None) => inner.forget(network),
        (None, _) => inner.catalogue_changed(),
    }
    Ok(())
}
