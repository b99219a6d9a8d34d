//! Who asks, and what they may do.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use znet_api::error::Problem;
use znet_api::token::OperatorToken;

use super::problem::Failed;
use crate::actor::{Actor, Role, Scope};
use crate::hub::{Hub, NetworkError};
use crate::network::Hosted;

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Over TLS: a bearer token says who it is.
    Tls,
    /// Over the Unix socket, from this user, who may do everything.
    Socket {
        /// The user's number.
        uid: u32,
    },
}

/// Whoever asks, known by token or by socket.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    actor: Actor,
    role: Role,
    scope: Scope,
}

impl Caller {
    /// Who it is, for the audit trail.
    pub(super) fn actor(&self) -> Actor {
        self.actor.clone()
    }

    /// Where it may look.
    pub(super) fn scope(&self) -> Scope {
        self.scope
    }

    /// A network in which the caller may do what takes this role. One outside of the caller's scope does not exist.
    pub(super) fn network(&self, hub: &Hub, wanted: &str, role: Role) -> Result<Arc<Hosted>, Failed> {
        let hosted = hub.find(wanted)?;
        if !self.scope.contains(hosted.id()) {
            return Err(NetworkError::Unknown { wanted: wanted.to_owned() }.into());
        }
        self.must_be(role)?;
        Ok(hosted)
    }

    /// Refuses whoever may not do what takes this role in all networks.
    pub(super) fn everywhere(&self, role: Role) -> Result<(), Failed> {
        self.must_be(role)?;
        if self.scope == Scope::All {
            return Ok(());
        }
        let why = format!("this takes the role {role} in all networks, and the token is for one network");
        Err(Problem::new(403, "not_permitted", why).into())
    }

    fn must_be(&self, role: Role) -> Result<(), Failed> {
        if self.role >= role {
            return Ok(());
        }
        let why = format!("this takes the role {role}, and the token has the role {}", self.role);
        Err(Problem::new(403, "not_permitted", why).into())
    }
}

impl FromRequestParts<Arc<Hub>> for Caller {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, hub: &Arc<Hub>) -> Result<Self, Failed> {
        // A request that nobody marked came in by no door that is known: it is treated as the strictest.
        if let Some(Door::Socket { uid }) = parts.extensions.get::<Door>() {
            return Ok(Self { actor: Actor::Local { uid: *uid }, role: Role::Admin, scope: Scope::All });
        }
        let unauthorized = |why: &str| Failed::from(Problem::new(401, "no_valid_token", why));
        let missing = "an operator's token is needed: `Authorization: Bearer znop1.…`; `znet-ctl operator create` makes one";
        let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (scheme, text) =
            header.and_then(|header| header.split_once(' ')).ok_or_else(|| unauthorized(missing))?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(unauthorized(missing));
        }
        let token: OperatorToken = text.trim().parse().map_err(|error| unauthorized(&format!("{error}")))?;
        let unknown = "no operator has this token; it may have been revoked";
        let operator = hub.operator(&token).ok_or_else(|| unauthorized(unknown))?;
        Ok(Self { actor: Actor::Operator(operator.id), role: operator.role, scope: operator.scope })
    }
}
