//! The audit trail: who, what, when, which revision.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use utoipa::IntoParams;
use znet_api::rest::{AuditRecord, rfc3339};
use znet_core::id::{NetworkId, Revision};

use super::auth::Caller;
use super::problem::{Answer, Failed, invalid};
use crate::actor::Role;
use crate::hub::Hub;
use crate::store::MAX_AUDIT_PAGE;

/// Records of one page when nothing else is asked for.
const PAGE: usize = 100;

/// Which part of the trail.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// Records after this one; from the oldest on when absent.
    after: Option<u64>,
    /// At most so many; 100 when absent, and never more than 1,000.
    limit: Option<u64>,
}

/// The audit trail of a network, the oldest record first.
#[utoipa::path(
    get, path = "/v1/networks/{network}/audit", tag = "audit",
    operation_id = "list_audit", security(("operator" = [])),
    params(("network" = String, Path, description = "Name or identifier"), Part),
    responses((status = 200, description = "The records", body = Vec<AuditRecord>), Failed)
)]
pub(super) async fn list(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Path(network): Path<String>,
    Query(part): Query<Part>,
) -> Answer<Vec<AuditRecord>> {
    let hosted = caller.network(&hub, &network, Role::Read)?;
    page(&hub, Some(hosted.id()), &part).await
}

/// The audit trail of all networks, those that were deleted included, and of the controller itself, the oldest record
/// first. Takes the role read in all networks.
#[utoipa::path(
    get, path = "/v1/audit", tag = "audit",
    operation_id = "list_all_audit", security(("operator" = [])), params(Part),
    responses((status = 200, description = "The records", body = Vec<AuditRecord>), Failed)
)]
pub(super) async fn all(
    caller: Caller,
    State(hub): State<Arc<Hub>>,
    Query(part): Query<Part>,
) -> Answer<Vec<AuditRecord>> {
    caller.everywhere(Role::Read)?;
    page(&hub, None, &part).await
}

async fn page(hub: &Hub, network: Option<NetworkId>, part: &Part) -> Answer<Vec<AuditRecord>> {
    for (field, number) in [("after", part.after), ("limit", part.limit)] {
        if number.is_some_and(|number| i64::try_from(number).is_err()) {
            return Err(invalid(field, format!("at most {}", i64::MAX)));
        }
    }
    let limit = part.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(PAGE).min(MAX_AUDIT_PAGE);
    let records = hub.audit(network, part.after.unwrap_or_default(), limit).await?;
    let describe = |record: crate::store::AuditRecord| AuditRecord {
        seq: record.seq,
        at: rfc3339(record.at),
        actor: record.actor,
        action: record.action,
        subject: record.detail,
        network: record.network.map(|network| network.to_string()),
        revision: record.revision.map_or(0, Revision::get),
    };
    Ok(Json(records.into_iter().map(describe).collect()))
}
