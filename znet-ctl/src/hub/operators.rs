//! Operators' tokens: who presents which, and what it allows.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use znet_api::token::OperatorToken;
use znet_core::controller::TokenSecret;
use znet_core::id::TokenId;

use super::Hub;
use crate::actor::{Actor, Role, Scope};
use crate::network::CommandError;
use crate::store::{AuditNote, Operator};

/// All operators, in memory: a request costs one look-up and one hash.
#[derive(Debug, Default)]
pub(super) struct Operators(HashMap<TokenId, Operator>);

impl Operators {
    pub(super) fn new(operators: Vec<Operator>) -> Self {
        Self(operators.into_iter().map(|operator| (operator.id, operator)).collect())
    }
}

/// What is stored in place of an operator's secret. It has 256 bits of entropy, so no slow hash is needed.
fn hash(secret: &TokenSecret) -> [u8; 32] {
    Sha256::new().chain_update(b"znet operator token v1\0").chain_update(*secret.to_bytes()).finalize().into()
}

impl Hub {
    /// The operator who holds this token; `None` when nobody does. Takes the same time for every wrong secret.
    pub fn operator(&self, token: &OperatorToken) -> Option<Operator> {
        let operators = self.operators.load();
        let operator = operators.0.get(&token.id)?;
        bool::from(operator.secret_hash.ct_eq(&hash(&token.secret))).then(|| operator.clone())
    }

    /// All operators, the oldest first.
    pub fn operators(&self) -> Vec<Operator> {
        let mut all: Vec<Operator> = self.operators.load().0.values().cloned().collect();
        all.sort_by_key(|operator| (operator.created, operator.id));
        all
    }

    /// Makes an operator's token. The secret is shown this once.
    ///
    /// # Errors
    /// [`CommandError::Store`].
    pub async fn create_operator(
        &self,
        note: String,
        role: Role,
        scope: Scope,
        actor: Actor,
    ) -> Result<(Operator, OperatorToken), CommandError> {
        let _changing = self.changing.lock().await;
        let token = {
            let mut rng = rand::rng();
            OperatorToken { id: TokenId::generate(&mut rng), secret: TokenSecret::generate(&mut rng) }
        };
        let now = self.clock().now();
        let secret_hash = hash(&token.secret);
        let operator = Operator { id: token.id, note, secret_hash, scope, role, created: now };
        let place = match scope {
            Scope::All => "all networks".to_owned(),
            Scope::Network(network) => format!("network {network}"),
        };
        let detail = format!("operator {} as {role} in {place}: {}", operator.id, operator.note);
        let audit = AuditNote { at: now, actor, action: "operator.create", detail };
        self.common.store.add_operator(operator.clone(), audit).await?;
        self.reload_operators().await?;
        Ok((operator, token))
    }

    /// Makes an operator's token invalid; `false` when there is none of this handle.
    ///
    /// # Errors
    /// [`CommandError::Store`].
    pub async fn revoke_operator(&self, id: TokenId, actor: Actor) -> Result<bool, CommandError> {
        let _changing = self.changing.lock().await;
        let detail = format!("operator {id}");
        let audit = AuditNote { at: self.clock().now(), actor, action: "operator.revoke", detail };
        let revoked = self.common.store.remove_operator(id, audit).await?;
        self.reload_operators().await?;
        Ok(revoked)
    }

    pub(super) async fn reload_operators(&self) -> Result<(), CommandError> {
        let operators = Operators::new(self.common.store.operators().await?);
        self.operators.store(operators.into());
        Ok(())
    }
}
