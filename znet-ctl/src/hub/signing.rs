//! Putting another signing key in the place of a network's.
//!
//! The new key is durable before anything is said of it. Then one commit of the network says that it signs from there on, with
//! the statement of the old key that agents follow. Killed before that commit, the new key was never used; after it, the old
//! one's private half is left for whoever looks next to remove.

use znet_core::controller::Command;
use znet_core::key::{SigningKey, VerifyingKey};

use super::{Hub, NetworkError};
use crate::actor::Actor;
use crate::network::{CommandError, Hosted};

impl Hub {
    /// Makes a new signing key for a network, which signs everything from the next revision on.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn rotate_key(&self, hosted: &Hosted, actor: Actor) -> Result<VerifyingKey, NetworkError> {
        let _changing = self.changing.lock().await;
        let new = SigningKey::generate(&mut rand::rng());
        let key = new.verifying_key();
        self.keys.add_network_key(hosted.id(), &hosted.verifying_key()?, &new).await?;
        hosted.reload_signers().await?;
        let statement = Box::new(hosted.succession(key)?);
        let done = hosted.execute(Command::RotateKey { statement }, actor).await;
        if let Err(CommandError::Rejected(rejection)) = done {
            self.drop_keys(hosted, &[key]).await;
            return Err(CommandError::Rejected(rejection).into());
        }
        done?;
        self.drop_spent_keys(hosted).await;
        Ok(key)
    }

    /// Removes the private halves of keys that others have followed.
    pub(super) async fn drop_spent_keys(&self, hosted: &Hosted) {
        let spent = hosted.spent_keys();
        if !spent.is_empty() {
            self.drop_keys(hosted, &spent).await;
        }
    }

    async fn drop_keys(&self, hosted: &Hosted, keys: &[VerifyingKey]) {
        let dropped = match self.keys.drop_network_keys(hosted.id(), keys).await {
            Ok(()) => hosted.reload_signers().await,
            error => error,
        };
        if let Err(error) = dropped {
            tracing::warn!(network = %hosted.name(), %error, "a signing key that nobody needs is left behind");
        }
    }
}
