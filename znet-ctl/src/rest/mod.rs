//! The operators' door: REST with JSON, described by an OpenAPI 3.1 document that is generated from the handlers.
//!
//! Over TLS an operator presents a bearer token with a role and a scope; over the Unix socket the machine's root may do
//! everything. A refusal is always a problem document (RFC 9457), whoever made it. What is asked for is decided by the
//! networks: here is only who may ask, and how it is said.

mod access;
#[allow(unused_qualifications, reason = "what utoipa generates for the query")]
mod audit;
mod auth;
mod containers;
mod controllers;
mod garbage;
mod keys;
mod networks;
mod nodes;
mod operators;
mod problem;
mod process;
mod reservations;
mod signing;
mod tls;
#[allow(unused_qualifications, reason = "what utoipa generates for the query")]
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state, map_request};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};
use utoipa::{PartialSchema as _, ToSchema as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use znet_api::error::Problem;

use crate::hub::Hub;

pub use auth::Door;

/// Largest body of a request in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// The routes, and the document that describes them.
fn described() -> (Router<Arc<Hub>>, OpenApi) {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new()
        .title("znet controller")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Networks, join tokens, nodes, containers, reservations, access points and the audit trail of a znet controller.",
        ))
        .license(Some(license))
        .build();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("znop1.…")
        .description(Some("An operator's token, as `znet-ctl operator create` prints it."))
        .build();
    let mut components = Components::new();
    components.add_security_scheme("operator", SecurityScheme::Http(bearer));
    components.schemas.insert(Problem::name().into_owned(), Problem::schema());
    let document = OpenApiBuilder::new().info(info).components(Some(components)).build();
    OpenApiRouter::with_openapi(document)
        .routes(routes!(process::health))
        .routes(routes!(process::metrics))
        .routes(routes!(process::openapi))
        .routes(routes!(process::backup))
        .routes(routes!(tls::show))
        .routes(routes!(tls::rotate))
        .routes(routes!(tls::promote))
        .routes(routes!(tls::retire))
        .routes(routes!(networks::list, networks::create))
        .routes(routes!(networks::show, networks::change, networks::delete))
        .routes(routes!(networks::status))
        .routes(routes!(networks::new_epoch))
        .routes(routes!(controllers::list, controllers::set, controllers::change))
        .routes(routes!(signing::show, signing::rotate))
        .routes(routes!(signing::retire))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show, nodes::remove))
        .routes(routes!(containers::list))
        .routes(routes!(containers::show, containers::remove))
        .routes(routes!(keys::rotate))
        .routes(routes!(reservations::list))
        .routes(routes!(reservations::put, reservations::remove))
        .routes(routes!(access::list))
        .routes(routes!(access::show, access::put, access::revoke))
        .routes(routes!(garbage::list, garbage::collect))
        .routes(routes!(audit::list))
        .routes(routes!(audit::all))
        .routes(routes!(operators::list, operators::create))
        .routes(routes!(operators::revoke))
        .split_for_parts()
}

/// The OpenAPI document.
pub fn document() -> OpenApi {
    described().1
}

/// The operators' door to the networks of this hub. Every request must carry a [`Door`] as an extension.
pub fn router(hub: Arc<Hub>) -> Router {
    described()
        .0
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_request(problem::in_time))
        .layer(from_fn(problem::always))
        .layer(from_fn_with_state(hub.clone(), tls::tell))
        .layer(from_fn_with_state(hub.clone(), problem::count))
        .with_state(hub)
}
