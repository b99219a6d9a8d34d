//! The signing keys of one network: which of them signs is a matter of its committed state, so that all controllers on a store
//! change over at the same revision.

use std::sync::{Arc, PoisonError, RwLock};

use znet_api::v1;
use znet_core::controller::Network;
use znet_core::id::{NetworkId, Revision};
use znet_core::key::{SigningKey, VerifyingKey};
use znet_core::map::{SignedHead, Succession};

use super::{CommandError, Hosted};
use crate::keyring::Keyring;
use crate::keys::KeysError;
use crate::store::StoreError;

/// The keys that this process has.
pub(super) struct Signers {
    network: NetworkId,
    keyring: Arc<Keyring>,
    /// In the order in which they were made.
    keys: RwLock<Vec<Arc<SigningKey>>>,
}

impl Signers {
    pub(super) fn new(network: NetworkId, keys: Vec<SigningKey>, keyring: Arc<Keyring>) -> Self {
        Self { network, keyring, keys: RwLock::new(keys.into_iter().map(Arc::new).collect()) }
    }

    fn find(&self, wanted: Option<&VerifyingKey>) -> Option<Arc<SigningKey>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        match wanted {
            Some(wanted) => keys.iter().find(|key| key.verifying_key() == *wanted).cloned(),
            // Never changed: the one with which the network was created.
            None => keys.first().cloned(),
        }
    }

    /// The key that signs what the network is now.
    pub(super) fn of(&self, network: &Network) -> Option<Arc<SigningKey>> {
        self.find(network.conf().signing.as_ref().map(|signing| &signing.key))
    }

    /// The head of the network, signed.
    pub(super) fn sign(&self, network: &Network) -> Option<SignedHead> {
        Some(network.head().sign(&*self.of(network)?))
    }

    /// Sees to it that the network can be signed: another controller may have made its key.
    pub(super) async fn ready(&self, network: &Network) -> Result<(), StoreError> {
        if self.of(network).is_some() {
            return Ok(());
        }
        let unusable = |why: String| StoreError::Unavailable { why: format!("its signing key: {why}") };
        self.reload().await.map_err(|error| unusable(error.to_string()))?;
        match self.of(network) {
            Some(_) => Ok(()),
            None => Err(unusable(
                "the one that the network says it has is not there; restore a backup".to_owned(),
            )),
        }
    }

    /// Reads the keys anew.
    pub(super) async fn reload(&self) -> Result<(), KeysError> {
        let keys = self.keyring.network_keys(self.network).await?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into_iter().map(Arc::new).collect();
        Ok(())
    }
}

impl std::fmt::Debug for Signers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signers").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Hosted {
    /// The key against which agents check its heads.
    ///
    /// # Errors
    /// As [`Hosted::read`].
    pub fn verifying_key(&self) -> Result<VerifyingKey, CommandError> {
        let key = self.read(|network, _| self.signers.of(network))?;
        key.map(|key| key.verifying_key()).ok_or(CommandError::Starting)
    }

    /// Has the present key say that another one follows it.
    pub(crate) fn succession(&self, to: VerifyingKey) -> Result<Succession, CommandError> {
        let key = self.read(|network, _| self.signers.of(network))?.ok_or(CommandError::Starting)?;
        Ok(Succession::sign(self.id, &key, to))
    }

    /// Reads the signing keys anew.
    pub(crate) async fn reload_signers(&self) -> Result<(), KeysError> {
        self.signers.reload().await
    }

    /// Keys that others have followed and whose private halves are still here, which nobody needs any more.
    pub(crate) fn spent_keys(&self) -> Vec<VerifyingKey> {
        let line = self.read(|network, _| network.conf().signing.clone()).ok().flatten();
        let froms = line.into_iter().flat_map(|signing| signing.line).map(|step| step.statement.from);
        froms.filter(|key| self.signers.find(Some(key)).is_some()).collect()
    }

    /// Whether whoever believes a key can be told of the present one.
    ///
    /// # Errors
    /// [`CommandError::KeyRetired`], or as [`Hosted::read`].
    pub fn can_follow(&self, believes: &VerifyingKey) -> Result<(), CommandError> {
        let current = self.verifying_key()?;
        self.line_of(believes, &current).map(drop)
    }

    fn line_of(&self, from: &VerifyingKey, to: &VerifyingKey) -> Result<Vec<Succession>, CommandError> {
        if from == to {
            return Ok(Vec::new());
        }
        let line = self.read(|network, _| network.conf().signing.as_ref().and_then(|s| s.line(from, to)))?;
        line.ok_or(CommandError::KeyRetired)
    }

    /// What has to be told to somebody who believes a key before a head of this revision: nothing, or an event and the key that
    /// is believed then.
    pub(super) fn leads_to(
        &self,
        believes: &VerifyingKey,
        revision: Revision,
    ) -> Result<Option<(v1::watch_event::Event, VerifyingKey)>, CommandError> {
        let changed = self.read(|network, _| network.conf().signing.as_ref().map(|s| s.key_at(revision)))?;
        let wanted = match changed {
            Some(key) => key,
            None => self.verifying_key()?,
        };
        if wanted == *believes {
            return Ok(None);
        }
        let line = self.line_of(believes, &wanted)?.iter().map(Into::into).collect();
        Ok(Some((v1::watch_event::Event::Keys(v1::KeyLine { line }), wanted)))
    }
}
