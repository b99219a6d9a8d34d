//! Which of Docker's networks stands for which of znet's. Docker says it when a network is created and never again, so it
//! is kept in a file, which is replaced whole.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{Error, ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;

use crate::refusal::Refusal;

/// Most networks that are kept.
const MAX_NETWORKS: usize = 10_000;

/// The networks, by Docker's identifiers.
#[derive(Debug)]
pub(crate) struct Networks {
    path: PathBuf,
    known: Mutex<BTreeMap<String, String>>,
}

impl Networks {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// The directory cannot be made, or the file not be read.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join("networks.json");
        let known = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                Error::new(ErrorKind::InvalidData, format!("{}: {error}", path.display()))
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, known: Mutex::new(known) })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The znet network that one of Docker's stands for.
    pub(crate) fn get(&self, id: &str) -> Option<String> {
        self.known().get(id).cloned()
    }

    /// Docker's identifiers of all.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    /// Keeps one; may be repeated.
    ///
    /// # Errors
    /// It stands for another one already, there are too many, or the file cannot be written.
    pub(crate) fn put(&self, id: &str, network: &str) -> Result<(), Refusal> {
        let mut known = self.known();
        match known.get(id) {
            Some(there) if there == network => return Ok(()),
            Some(there) => {
                let text = format!("Docker's network {id} stands for the znet network {there} already");
                return Err(Refusal::new(StatusCode::CONFLICT, text));
            }
            None if known.len() >= MAX_NETWORKS => {
                return Err(Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "there are too many networks"));
            }
            None => {}
        }
        let mut changed = known.clone();
        changed.insert(id.to_owned(), network.to_owned());
        self.replace(&changed)?;
        *known = changed;
        Ok(())
    }

    /// Forgets one; may be repeated.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Refusal> {
        let mut known = self.known();
        let mut changed = known.clone();
        if changed.remove(id).is_some() {
            self.replace(&changed)?;
            *known = changed;
        }
        Ok(())
    }

    fn replace(&self, with: &BTreeMap<String, String>) -> Result<(), Refusal> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let written = || {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&serde_json::to_vec(with)?)?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|error| error.error)?;
            File::open(dir)?.sync_all()
        };
        written().map_err(|error: Error| {
            let text = format!("{} cannot be written: {error}", self.path.display());
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn networks_outlive_the_plugin_and_stand_for_one_network_each() {
        let dir = tempfile::Builder::new().prefix("zt-docker-").tempdir().unwrap();
        let networks = Networks::open(dir.path()).unwrap();
        networks.put("d1", "acme").unwrap();
        networks.put("d1", "acme").unwrap();
        networks.put("d2", "blue").unwrap();
        assert_eq!(networks.put("d1", "blue").unwrap_err().status, StatusCode::CONFLICT);
        networks.remove("d2").unwrap();
        networks.remove("d2").unwrap();
        let again = Networks::open(dir.path()).unwrap();
        assert_eq!((again.get("d1").as_deref(), again.get("d2")), (Some("acme"), None));
    }

    #[test]
    fn a_damaged_file_is_named_and_not_overwritten() {
        let dir = tempfile::Builder::new().prefix("zt-docker-").tempdir().unwrap();
        let path = dir.path().join("networks.json");
        fs::write(&path, "{").unwrap();
        assert!(Networks::open(dir.path()).unwrap_err().to_string().contains("networks.json"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }
}
