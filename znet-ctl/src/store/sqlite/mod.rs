//! The embedded store: one SQLite file in WAL mode with `synchronous=FULL`.
//!
//! One thread owns the only connection that writes. It takes all commits that are waiting, of all networks, into one
//! transaction, so that one flush to the disk pays for all of them; each commit stands in a savepoint of its own and
//! has a result of its own. Readers have connections of their own and go on when writing fails.

mod adopt;
mod encode;
mod error;
mod read;
mod schema;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};
use znet_core::id::{NetworkId, Revision, TokenId};
use znet_core::name::Name;

use super::revisions::Revisions;
use super::{
    AuditNote, AuditRecord, Commit, Loaded, Logged, MAX_AUDIT_PAGE, Moved, NetworkEntry, Operator, Store,
    StoreError,
};
use encode::{Adopted, Encoded};
use write::{Job, Write};

pub use schema::FORMAT;

/// Connections that read at the same time.
const READERS: usize = 2;
/// Writes that may wait for the writing thread; more callers wait until there is room.
const WRITE_QUEUE: usize = 1024;

/// Keeps networks in a SQLite file. Dropping it lets go of the file when the writes that wait are done.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    writer: Mutex<Option<mpsc::Sender<Job>>>,
    readers: Vec<Arc<Mutex<Option<Connection>>>>,
    next_reader: AtomicUsize,
    revisions: Revisions,
}

impl SqliteStore {
    /// Opens the file, or makes it. Blocks while it does; SQLite recovers a torn write-ahead log in it.
    ///
    /// # Errors
    /// [`StoreError::TooNew`], [`StoreError::Corrupt`] when it is no store of ours, or a failure.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = schema::open_writer(path)?;
        let (writer, jobs) = mpsc::channel(WRITE_QUEUE);
        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            readers.push(Arc::new(Mutex::new(Some(schema::open_reader(path)?))));
        }
        let file = path.to_owned();
        std::thread::Builder::new()
            .name("znet-store".to_owned())
            .spawn(move || write::run(connection, jobs, &file))
            .map_err(|error| StoreError::Unavailable { why: format!("no thread can be started: {error}") })?;
        Ok(Self {
            path: path.to_owned(),
            writer: Mutex::new(Some(writer)),
            readers,
            next_reader: AtomicUsize::new(0),
            revisions: Revisions::default(),
        })
    }

    async fn write(&self, write: Write) -> Result<bool, StoreError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (done, result) = oneshot::channel();
        let sent = match writer {
            Some(writer) => writer.send(Job { write, done }).await.is_ok(),
            None => false,
        };
        if !sent {
            return Err(closed());
        }
        result.await.unwrap_or_else(|_| Err(closed()))
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self.next_reader.fetch_add(1, Ordering::Relaxed);
        let reader = self.readers.get(turn % READERS).cloned().ok_or_else(closed)?;
        let task = tokio::task::spawn_blocking(move || {
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            query(reader.as_mut().ok_or_else(closed)?)
        });
        task.await.unwrap_or_else(|error| Err(StoreError::Unavailable { why: error.to_string() }))
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable { why: "the store was closed".to_owned() }
}

#[async_trait]
impl Store for SqliteStore {
    async fn networks(&self) -> Result<Vec<NetworkEntry>, StoreError> {
        self.read(|connection| read::networks(connection)).await
    }

    async fn create_network(&self, name: &Name, first: Commit) -> Result<(), StoreError> {
        let network = first.head.network;
        super::check_sequence(network, Revision::ZERO, std::slice::from_ref(&first))?;
        let revision = first.head.revision;
        let first = Encoded::new(first)?;
        self.write(Write::Create { network, name: name.clone(), first }).await?;
        self.revisions.announce(network, revision);
        Ok(())
    }

    async fn delete_network(&self, network: NetworkId, audit: AuditNote) -> Result<(), StoreError> {
        self.write(Write::Delete { network, audit }).await?;
        self.revisions.forget(&network);
        Ok(())
    }

    async fn load(&self, network: NetworkId) -> Result<Loaded, StoreError> {
        self.read(move |connection| read::load(connection, network)).await
    }

    async fn commit(
        &self,
        network: NetworkId,
        expected: Revision,
        commits: Vec<Commit>,
    ) -> Result<(), StoreError> {
        super::check_sequence(network, expected, &commits)?;
        let newest = commits.last().map(|commit| commit.head.revision);
        let commits = commits.into_iter().map(Encoded::new).collect::<Result<Vec<_>, _>>()?;
        self.write(Write::Commit { network, expected, commits }).await?;
        if let Some(newest) = newest {
            self.revisions.announce(network, newest);
        }
        Ok(())
    }

    async fn changes_since(&self, network: NetworkId, revision: Revision) -> Result<Vec<Logged>, StoreError> {
        self.read(move |connection| read::changes_since(connection, network, revision)).await
    }

    fn revisions(&self, network: NetworkId) -> watch::Receiver<Revision> {
        self.revisions.subscribe(network)
    }

    async fn audit(
        &self,
        network: Option<NetworkId>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        let limit = limit.min(MAX_AUDIT_PAGE);
        self.read(move |connection| read::audit(connection, network, after, limit)).await
    }

    async fn operators(&self) -> Result<Vec<Operator>, StoreError> {
        self.read(|connection| read::operators(connection)).await
    }

    async fn add_operator(&self, operator: Operator, audit: AuditNote) -> Result<(), StoreError> {
        self.write(Write::AddOperator { operator, audit }).await.map(drop)
    }

    async fn remove_operator(&self, id: TokenId, audit: AuditNote) -> Result<bool, StoreError> {
        self.write(Write::RemoveOperator { id, audit }).await
    }

    async fn note(&self, audit: AuditNote) -> Result<(), StoreError> {
        self.write(Write::Note(audit)).await.map(drop)
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.write(Write::Probe).await.map(drop)
    }

    async fn copy_to(&self, path: &Path) -> Result<(), StoreError> {
        let (from, to) = (self.path.clone(), path.to_owned());
        // A connection of its own: a long copy must not make other readers wait.
        let task = tokio::task::spawn_blocking(move || schema::copy(&from, &to));
        task.await.unwrap_or_else(|error| Err(StoreError::Unavailable { why: error.to_string() }))
    }

    async fn adopt(&self, network: Moved) -> Result<(), StoreError> {
        let adopted = Adopted::new(&network)?;
        let head = network.head;
        self.write(Write::Adopt(adopted)).await?;
        self.revisions.announce(head.network, head.revision);
        Ok(())
    }

    async fn adopt_rest(&self, operators: Vec<Operator>, audit: Vec<AuditRecord>) -> Result<(), StoreError> {
        self.write(Write::AdoptRest { operators, audit }).await.map(drop)
    }

    async fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let (done, result) = oneshot::channel();
            if writer.send(Job { write: Write::Close, done }).await.is_ok() {
                let _ = result.await;
            }
        }
        for reader in &self.readers {
            let reader = reader.clone();
            // Waits for a read that is going on; off the runtime, as that may take a while.
            let _ = tokio::task::spawn_blocking(move || {
                drop(reader.lock().unwrap_or_else(PoisonError::into_inner).take());
            })
            .await;
        }
    }
}
