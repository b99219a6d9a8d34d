//! Copies of everything, and the way back.
//!
//! A backup is one file: a line that names the format and the SHA-256 of the rest, then a SQLite file. That is a
//! consistent copy of the store with one more table, which holds the keys of the data directory. Whoever has it can be
//! the controller: it is as secret as the data directory itself.
//!
//! A controller that was restored from a backup is older than its agents. They refuse maps of a revision below the
//! last one they applied, until an operator starts a new epoch for the network.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;
use znet_core::id::NetworkId;

use crate::keys::{self, DataDir, KeysError};
use crate::store::sqlite::FORMAT;
use crate::store::{SqliteStore, Store, StoreError};

/// How a backup begins; the hash in hexadecimal digits and a line break follow.
const MAGIC: &str = "znet backup 1 sha256=";
/// Length of the first line.
const HEADER_LEN: usize = MAGIC.len() + 64 + 1;
/// How much is read and hashed at a time.
const CHUNK: usize = 128 * 1024;
/// Most faults that are told of a damaged file.
const MAX_FAULTS: usize = 5;

/// Why no backup was made.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store could not be copied.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key could not be read.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The file system said no.
    #[error("the backup cannot be written at {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

/// Why nothing was restored. The data directory is as it was, but for [`RestoreError::Io`] while files are moved.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Not a backup.
    #[error("{} is no backup of znet", path.display())]
    NotABackup {
        /// The file.
        path: PathBuf,
    },
    /// The hash does not fit.
    #[error("{} is damaged or cut short ({why}); use another backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// Of a newer version.
    #[error("the backup has format {found}, this version knows {known}; restore it with a newer znet-ctl")]
    TooNew {
        /// The format found.
        found: i64,
        /// The newest format that this version knows.
        known: i64,
    },
    /// There is something already.
    #[error(
        "{} holds a controller's state already; restore into an empty directory, or say that it is to be replaced",
        path.display()
    )]
    NotEmpty {
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory cannot be used; it may be in use.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Names and revisions of the networks.
    pub networks: Vec<(String, u64)>,
    /// Where the former content of the data directory is, when there was one.
    pub replaced: Option<PathBuf>,
}

/// Makes a backup and returns it, open for reading from its begin. It has no name in the file system and goes with
/// the last handle to it.
pub(crate) async fn make(data: &DataDir, store: &dyn Store) -> Result<File, BackupError> {
    let part = data.path().join("backup.part");
    let io = |source| BackupError::Io { path: part.clone(), source };
    remove_file(&part).map_err(io)?;
    // Exists before the copy is written into it, so that it is nobody else's to read at any time.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).map_err(io)?;
    let done = copy_with_keys(data, store, &part).await;
    let _ = remove_file(&part);
    done
}

async fn copy_with_keys(data: &DataDir, store: &dyn Store, part: &Path) -> Result<File, BackupError> {
    store.copy_to(part).await?;
    let (directory, part) = (data.path().to_owned(), part.to_owned());
    let task = tokio::task::spawn_blocking(move || {
        add_keys(&directory, &part)?;
        seal(&directory, &part)
    });
    task.await.unwrap_or_else(|error| Err(StoreError::Unavailable { why: error.to_string() }.into()))
}

fn add_keys(directory: &Path, part: &Path) -> Result<(), BackupError> {
    let mut connection = Connection::open(part).map_err(StoreError::from)?;
    let networks = networks_in(&connection).map_err(StoreError::from)?;
    let networks: Vec<NetworkId> = networks.into_iter().map(|(id, ..)| id).collect();
    let files = keys::key_files(directory, &networks)?;
    let write = |connection: &mut Connection| -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE backup_keys (name TEXT PRIMARY KEY, content TEXT NOT NULL) STRICT",
        )?;
        for (name, content) in &files {
            transaction.execute("INSERT INTO backup_keys VALUES (?1, ?2)", (name, content.as_str()))?;
        }
        transaction.commit()
    };
    write(&mut connection).map_err(StoreError::from)?;
    Ok(connection.close().map_err(|(_, error)| StoreError::from(error))?)
}

/// Puts the first line before the copy, in a file without a name.
fn seal(directory: &Path, part: &Path) -> Result<File, BackupError> {
    let io = |source| BackupError::Io { path: part.to_owned(), source };
    let hash = hash_of(&mut File::open(part).map_err(io)?).map_err(io)?;
    let mut out = tempfile_in(directory).map_err(io)?;
    let copy = |out: &mut File| -> std::io::Result<()> {
        writeln!(out, "{MAGIC}{hash}")?;
        std::io::copy(&mut File::open(part)?, out)?;
        out.seek(SeekFrom::Start(0)).map(drop)
    };
    copy(&mut out).map_err(io)?;
    Ok(out)
}

/// A file that nobody else can open and that goes with its handle.
fn tempfile_in(directory: &Path) -> std::io::Result<File> {
    let path = directory.join("backup.out");
    remove_file(&path)?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Restores a backup into a data directory that no controller uses. What is there is moved aside when `replace` says
/// so, and refused otherwise.
///
/// # Errors
/// [`RestoreError`].
pub fn restore(file: &Path, data_dir: &Path, replace: bool) -> Result<Restored, RestoreError> {
    let unpacked = Unpacked::check(file, data_dir)?;
    let replaced = make_room(data_dir, replace)?;
    // Taken only now: the directory may have been moved aside. Nobody else's controller starts from here on.
    let data = DataDir::open(data_dir)?;
    for (name, content) in &unpacked.keys {
        if !keys::restore_key_file(data.path(), name, content)? {
            return Err(RestoreError::Damaged {
                path: file.to_owned(),
                why: format!("a key is named {name:?}"),
            });
        }
    }
    let target = data.store_file();
    fs::rename(&unpacked.store, &target).map_err(io(&target))?;
    let directory = data.path();
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io(directory))?;
    Ok(Restored { networks: unpacked.networks.clone(), replaced })
}

/// A backup that was checked, beside the data directory so that it can be renamed into it. Goes when dropped.
struct Unpacked {
    work: PathBuf,
    store: PathBuf,
    keys: Vec<(String, Zeroizing<String>)>,
    networks: Vec<(String, u64)>,
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.work);
    }
}

impl Unpacked {
    fn check(file: &Path, data_dir: &Path) -> Result<Self, RestoreError> {
        let damaged = |why: String| RestoreError::Damaged { path: file.to_owned(), why };
        let mut source = BufReader::with_capacity(CHUNK, File::open(file).map_err(io(file))?);
        let mut header = [0; HEADER_LEN];
        let expected =
            source.read_exact(&mut header).ok().and_then(|()| header.strip_prefix(MAGIC.as_bytes()));
        let expected = expected.ok_or_else(|| RestoreError::NotABackup { path: file.to_owned() })?;
        let work = sibling(data_dir, "restore");
        if work.exists() {
            fs::remove_dir_all(&work).map_err(io(&work))?;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&work).map_err(io(&work))?;
        let store = work.join("znet.db");
        let mut unpacked = Self { work, store, keys: Vec::new(), networks: Vec::new() };
        let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unpacked.store);
        let mut target = target.map_err(io(&unpacked.store))?;
        std::io::copy(&mut source, &mut target).map_err(io(&unpacked.store))?;
        let hash = hash_of(&mut File::open(&unpacked.store).map_err(io(&unpacked.store))?);
        let hash = hash.map_err(io(&unpacked.store))?;
        if format!("{hash}\n").as_bytes() != expected {
            return Err(damaged("its hash does not fit its content".to_owned()));
        }
        unpacked.take_keys(file)?;
        drop(target);
        // Opened as a controller would: what it could not use is no backup.
        match SqliteStore::open(&unpacked.store) {
            Ok(store) => drop(store),
            Err(StoreError::TooNew { found, known }) => return Err(RestoreError::TooNew { found, known }),
            Err(error) => return Err(damaged(error.to_string())),
        }
        Ok(unpacked)
    }

    /// Takes the keys out of the copy of the store, without a trace of them.
    fn take_keys(&mut self, file: &Path) -> Result<(), RestoreError> {
        let damaged = |why: String| RestoreError::Damaged { path: file.to_owned(), why };
        let failed = |error: rusqlite::Error| damaged(error.to_string());
        let connection = Connection::open(&self.store).map_err(failed)?;
        let format: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        if format > FORMAT {
            return Err(RestoreError::TooNew { found: format, known: FORMAT });
        }
        let faults = faults(&connection).map_err(failed)?;
        if !faults.is_empty() {
            return Err(damaged(faults.join("; ")));
        }
        let networks = networks_in(&connection).map_err(failed)?;
        self.networks = networks.iter().map(|(_, name, revision)| (name.clone(), *revision)).collect();
        let read = |connection: &Connection| -> rusqlite::Result<Vec<(String, Zeroizing<String>)>> {
            let mut statement = connection.prepare("SELECT name, content FROM backup_keys")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, Zeroizing::new(row.get(1)?))))?;
            rows.collect()
        };
        self.keys = read(&connection).map_err(failed)?;
        for (id, name, _) in &networks {
            if !self.keys.iter().any(|(file, _)| file.contains(&id.to_string())) {
                return Err(damaged(format!("the key of network {name} is not in it")));
            }
        }
        connection
            .execute_batch("PRAGMA secure_delete = ON; DROP TABLE backup_keys; VACUUM;")
            .map_err(failed)?;
        connection.close().map_err(|(_, error)| failed(error))?;
        File::open(&self.store).and_then(|store| store.sync_all()).map_err(io(&self.store))
    }
}

/// Sees to it that the data directory is empty or absent.
fn make_room(data_dir: &Path, replace: bool) -> Result<Option<PathBuf>, RestoreError> {
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(data_dir)(error)),
    };
    if entries.flatten().next().is_none() {
        return Ok(None);
    }
    if !replace {
        return Err(RestoreError::NotEmpty { path: data_dir.to_owned() });
    }
    // Whoever uses it is told so before anything is moved.
    let held = DataDir::open(data_dir)?;
    let aside = (1..).map(|n| sibling(data_dir, &format!("before-restore-{n}"))).find(|path| !path.exists());
    let aside = aside.unwrap_or_else(|| sibling(data_dir, "before-restore"));
    fs::rename(data_dir, &aside).map_err(io(data_dir))?;
    drop(held);
    Ok(Some(aside))
}

/// A path beside the data directory, on the same file system as a rule.
fn sibling(data_dir: &Path, word: &str) -> PathBuf {
    let mut name = data_dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{word}"));
    data_dir.with_file_name(name)
}

fn faults(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let lines = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").take(MAX_FAULTS).collect())
}

fn networks_in(connection: &Connection) -> rusqlite::Result<Vec<(NetworkId, String, u64)>> {
    let mut statement = connection.prepare("SELECT id, name, revision FROM networks ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        let id: [u8; 16] = row.get(0)?;
        Ok((NetworkId::from_bytes(id), row.get(1)?, row.get(2)?))
    })?;
    rows.collect()
}

fn hash_of(file: &mut File) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk)?;
        match chunk.get(..read) {
            Some([]) | None => break,
            Some(bytes) => hasher.update(bytes),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> RestoreError + use<> {
    let path = path.to_owned();
    move |source| RestoreError::Io { path, source }
}
