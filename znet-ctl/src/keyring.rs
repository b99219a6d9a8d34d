//! The keys that a controller works with, wherever they are kept.
//!
//! One controller alone keeps them in its data directory. Several that serve the same networks need the same: agents
//! pin one TLS key, and believe heads of one signing key for each network. Then they are in the store, each sealed with
//! AES-256-GCM under a key that is a file of every controller and never in the store: who reads the store reads no key, and
//! who changes it cannot put another key, or one network's, in the place of a network's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng as _;
use zeroize::Zeroizing;
use znet_api::tls::Identity;
use znet_core::id::NetworkId;
use znet_core::key::{SigningKey, VerifyingKey};

use crate::identities::Identities;
use crate::keys::{self, DataDir, KeysError};
use crate::store::{SharedStore, Store, StoreError};

/// The file in the data directory that opens what is sealed, unless another one is named.
const STORE_KEY: &str = "store.key";
/// What is sealed under the name [`CHECK`], so that a wrong key file is found out before anything is done with it.
const CHECKED: &[u8] = b"znet";
const CHECK: &str = "check";
const TLS: &str = "tls";
/// Bytes of a signing key.
const SEED_LEN: usize = 32;
/// Most signing keys of one network: the present one, and some that were made for changes that never came to be.
const MAX_KEYS: usize = 8;
/// How often keys are changed when other controllers are faster.
const MAX_RACES: usize = 10;
/// How a sealed secret begins; the nonce and the ciphertext with its tag follow.
const VERSION: u8 = 1;
/// Tells these texts from every other use of the key.
const CONTEXT: &str = "znet sealed secret v1\0";

/// Where a controller's keys are.
#[derive(Debug)]
pub enum Keyring {
    /// In the data directory, as files.
    Directory(DataDir),
    /// In a store that several controllers share.
    Shared(Sealed),
}

/// Keys in a shared store.
pub struct Sealed {
    data: Option<DataDir>,
    store: Arc<dyn Store>,
    sealer: Sealer,
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").field("data", &self.data).finish_non_exhaustive()
    }
}

impl From<DataDir> for Keyring {
    fn from(data: DataDir) -> Self {
        Self::Directory(data)
    }
}

impl Keyring {
    /// The keys of a controller that works on this store. `file` is the key of a shared store; in the data directory when
    /// none is named, and made there when nothing was sealed yet.
    ///
    /// # Errors
    /// [`KeysError::StoreKey`] when the key file is missing or of another store, or a failure.
    pub async fn open(data: DataDir, store: &Arc<dyn Store>, file: Option<&Path>) -> Result<Self, KeysError> {
        if store.shared().is_none() {
            return Ok(Self::Directory(data));
        }
        let path = file.map_or_else(|| data.path().join(STORE_KEY), Path::to_owned);
        Ok(Self::Shared(Sealed { data: Some(data), ..Sealed::open(store, path).await? }))
    }

    /// The keys in a shared store, for somebody who is no controller.
    ///
    /// # Errors
    /// As [`Keyring::open`].
    pub async fn of_store(store: &Arc<dyn Store>, file: &Path) -> Result<Self, KeysError> {
        Ok(Self::Shared(Sealed::open(store, file.to_owned()).await?))
    }

    /// The data directory, where there is one.
    pub fn data(&self) -> Option<&DataDir> {
        match self {
            Self::Directory(data) => Some(data),
            Self::Shared(sealed) => sealed.data.as_ref(),
        }
    }

    /// The TLS keys that agents pin; the first is made at the first call ever.
    ///
    /// # Errors
    /// [`KeysError`]: they cannot be read, written or understood.
    pub async fn identities(&self) -> Result<Identities, KeysError> {
        let sealed = match self {
            Self::Directory(data) => return data.identities(),
            Self::Shared(sealed) => sealed,
        };
        let unusable = |why: String| KeysError::Unusable { path: in_store(TLS), why };
        let pem = match sealed.get(TLS).await? {
            Some(pem) => pem,
            None => {
                let made = Identity::generate().map_err(|error| unusable(error.to_string()))?;
                // Another controller may have been faster; then its is everybody's.
                sealed.put(TLS, made.to_pem().as_bytes()).await?
            }
        };
        let pem = std::str::from_utf8(&pem).map_err(|error| unusable(error.to_string()))?;
        Identities::from_text(pem).map_err(|error| unusable(error.to_string()))
    }

    /// Puts TLS keys in the place of others; `false` when those are not there any more. When it returns they are durable, and
    /// other controllers on the same store are told.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn replace_identities(&self, old: &Identities, new: &Identities) -> Result<bool, KeysError> {
        match self {
            Self::Directory(data) => data.write_identities(new).map(|()| true),
            Self::Shared(sealed) => {
                sealed.replace(TLS, old.to_text().as_bytes(), new.to_text().as_bytes()).await
            }
        }
    }

    /// Keeps TLS keys where there are none yet, for a move from one store to another.
    ///
    /// # Errors
    /// [`KeysError`]: there are others, or they cannot be written.
    pub async fn take_over_identities(&self, identities: &Identities) -> Result<(), KeysError> {
        let pem = identities.to_text();
        match self {
            Self::Directory(data) => keys::restore_key_file(data.path(), keys::TLS, &pem).map(drop),
            Self::Shared(sealed) if sealed.put(TLS, pem.as_bytes()).await?.as_slice() == pem.as_bytes() => {
                Ok(())
            }
            Self::Shared(_) => {
                let why = "there is another one already".to_owned();
                Err(KeysError::Unusable { path: in_store(TLS), why })
            }
        }
    }

    /// Keeps the signing keys of a network that has none here. When it returns they are durable.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn write_network_keys(&self, network: NetworkId, keys: &[SigningKey]) -> Result<(), KeysError> {
        match self {
            Self::Directory(data) => data.write_network_keys(network, keys),
            Self::Shared(sealed) => sealed.put(&name_of(network), &seeds(keys)).await.map(drop),
        }
    }

    /// A network's signing keys, in the order in which they were made.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn network_keys(&self, network: NetworkId) -> Result<Vec<SigningKey>, KeysError> {
        let sealed = match self {
            Self::Directory(data) => return data.network_keys(network),
            Self::Shared(sealed) => sealed,
        };
        let name = name_of(network);
        let path = in_store(&name);
        let text = sealed.get(&name).await?.ok_or(KeysError::Missing { network, path: path.clone() })?;
        let (seeds, rest) = text.as_chunks::<SEED_LEN>();
        if seeds.is_empty() || !rest.is_empty() {
            return Err(KeysError::Unusable { path, why: "not 32 bytes for each key".to_owned() });
        }
        Ok(seeds.iter().map(SigningKey::from_seed).collect())
    }

    /// Adds a signing key to a network's, of which `current` is in use. When it returns it is durable.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn add_network_key(
        &self,
        network: NetworkId,
        current: &VerifyingKey,
        new: &SigningKey,
    ) -> Result<(), KeysError> {
        self.change_network_keys(network, |mut keys| {
            if keys.len() >= MAX_KEYS {
                // Made for changes that never came to be.
                keys.retain(|key| key.verifying_key() == *current);
            }
            keys.push(SigningKey::from_seed(&new.to_seed()));
            keys
        })
        .await
    }

    /// Removes some of a network's signing keys; the last that is left stays.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn drop_network_keys(
        &self,
        network: NetworkId,
        gone: &[VerifyingKey],
    ) -> Result<(), KeysError> {
        self.change_network_keys(network, |mut keys| {
            if keys.iter().any(|key| !gone.contains(&key.verifying_key())) {
                keys.retain(|key| !gone.contains(&key.verifying_key()));
            }
            keys
        })
        .await
    }

    async fn change_network_keys(
        &self,
        network: NetworkId,
        change: impl Fn(Vec<SigningKey>) -> Vec<SigningKey>,
    ) -> Result<(), KeysError> {
        let sealed = match self {
            Self::Directory(data) => {
                return data.write_network_keys(network, &change(data.network_keys(network)?));
            }
            Self::Shared(sealed) => sealed,
        };
        for _ in 0..MAX_RACES {
            let old = self.network_keys(network).await?;
            let before = seeds(&old);
            let after = seeds(&change(old));
            if before == after || sealed.replace(&name_of(network), &before, &after).await? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable { why: "other controllers change the keys all the time".to_owned() }
            .into())
    }

    /// Removes the signing key of a network that is gone.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn remove_network_key(&self, network: NetworkId) -> Result<(), KeysError> {
        match self {
            Self::Directory(data) => data.remove_network_key(network),
            Self::Shared(sealed) => Ok(sealed.shared()?.remove_secret(&name_of(network)).await?),
        }
    }
}

impl Sealed {
    async fn open(store: &Arc<dyn Store>, path: PathBuf) -> Result<Self, KeysError> {
        let shared = store.shared().ok_or(StoreError::Unsupported { what: "keep secrets" })?;
        let wrong = |why: &'static str| KeysError::StoreKey { path: path.clone(), why };
        let there = shared.secret(CHECK).await?;
        let sealer = match keys::read(&path)? {
            Some(text) => Sealer::from_text(&text).ok_or_else(|| wrong("it holds no key of 32 bytes"))?,
            None if there.is_some() => return Err(wrong("it is missing")),
            None => {
                let (sealer, text) = Sealer::generate();
                keys::write(&path, text.as_bytes())?;
                tracing::warn!(path = %path.display(), "made the key of the store: give every other controller a copy");
                sealer
            }
        };
        let there = match there {
            Some(there) => there,
            None => shared.put_secret(CHECK, &sealer.seal(CHECK, CHECKED)?).await?,
        };
        if sealer.open(CHECK, &there).is_none_or(|checked| checked.as_slice() != CHECKED) {
            return Err(wrong("it is the key of another store"));
        }
        Ok(Self { data: None, store: store.clone(), sealer })
    }

    fn shared(&self) -> Result<&dyn SharedStore, StoreError> {
        self.store.shared().ok_or(StoreError::Unsupported { what: "keep secrets" })
    }

    async fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeysError> {
        let Some(sealed) = self.shared()?.secret(name).await? else { return Ok(None) };
        self.unseal(name, &sealed).map(Some)
    }

    /// Stores a secret unless there is one, and returns the one that is there.
    async fn put(&self, name: &str, secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeysError> {
        let sealed = self.sealer.seal(name, secret)?;
        let there = self.shared()?.put_secret(name, &sealed).await?;
        self.unseal(name, &there)
    }

    /// Puts a secret in the place of another one; `false` when that one is not there any more.
    async fn replace(&self, name: &str, old: &[u8], new: &[u8]) -> Result<bool, KeysError> {
        let Some(sealed) = self.shared()?.secret(name).await? else { return Ok(false) };
        if self.unseal(name, &sealed)?.as_slice() != old {
            return Ok(false);
        }
        Ok(self.shared()?.replace_secret(name, &sealed, &self.sealer.seal(name, new)?).await?)
    }

    fn unseal(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeysError> {
        let why = "it was changed, or sealed with another key";
        let unusable = || KeysError::Unusable { path: in_store(name), why: why.to_owned() };
        self.sealer.open(name, sealed).ok_or_else(unusable)
    }
}

/// Keys as they are sealed.
fn seeds(keys: &[SigningKey]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(keys.iter().flat_map(|key| *key.to_seed()).collect())
}

fn name_of(network: NetworkId) -> String {
    format!("network/{network}")
}

/// What stands in messages in the place of a file's path.
fn in_store(name: &str) -> PathBuf {
    PathBuf::from(format!("secret/{name} in the store"))
}

/// Seals and opens secrets under names: one that was sealed under a name opens under no other.
struct Sealer(RandomizedNonceKey);

impl Sealer {
    fn new(key: &[u8]) -> Option<Self> {
        RandomizedNonceKey::new(&AES_256_GCM, key).ok().map(Self)
    }

    fn from_text(text: &str) -> Option<Self> {
        let key = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
        Self::new(&key)
    }

    /// A fresh one, and the text of its key file.
    fn generate() -> (Self, Zeroizing<String>) {
        loop {
            let mut key = Zeroizing::new([0; 32]);
            rand::rng().fill_bytes(key.as_mut());
            let mut text = Zeroizing::new(STANDARD.encode(key.as_slice()));
            text.push('\n');
            // Any 32 bytes are a key.
            if let Some(sealer) = Self::new(key.as_slice()) {
                return (sealer, text);
            }
        }
    }

    fn seal(&self, name: &str, secret: &[u8]) -> Result<Vec<u8>, KeysError> {
        let mut text = secret.to_vec();
        let failed = |_| KeysError::Unusable { path: in_store(name), why: "it cannot be sealed".to_owned() };
        let nonce = self.0.seal_in_place_append_tag(aad(name), &mut text).map_err(failed)?;
        Ok([&[VERSION], nonce.as_ref().as_slice(), &text].concat())
    }

    fn open(&self, name: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let rest = sealed.strip_prefix(&[VERSION])?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>()?;
        let mut text = Zeroizing::new(text.to_vec());
        let opened = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), aad(name), &mut text).ok()?;
        Some(Zeroizing::new(opened.to_vec()))
    }
}

fn aad(name: &str) -> Aad<Vec<u8>> {
    Aad::from([CONTEXT.as_bytes(), name.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_sealed_secret_opens_under_its_name_and_key_alone_and_shows_nothing() {
        let (sealer, text) = Sealer::generate();
        let secret = [0x5a; 32];
        let sealed = sealer.seal("network/a", &secret).unwrap();
        assert!(!sealed.windows(8).any(|window| window == &secret[..8]));
        let again = Sealer::from_text(&text).unwrap();
        assert_eq!(again.open("network/a", &sealed).unwrap().as_slice(), secret);
        assert!(again.open("network/b", &sealed).is_none());
        assert!(Sealer::generate().0.open("network/a", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(again.open("network/a", &changed).is_none(), "changed at {at}");
        }
        assert!(Sealer::from_text("AAAA").is_none() && again.open("network/a", &[]).is_none());
        assert_ne!(sealer.seal("x", &secret).unwrap(), sealer.seal("x", &secret).unwrap());
    }
}
