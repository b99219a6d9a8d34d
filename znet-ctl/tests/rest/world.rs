//! A hub on a real store, its operators' door, and the list of the routes that there must be.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use znet_core::controller::{Command, NodeLifetime, Reply};
use znet_core::id::NodeId;
use znet_ctl::actor::Actor;
use znet_ctl::clock::Clock;
use znet_ctl::hub::Hub;
use znet_ctl::keys::DataDir;
use znet_ctl::rest::{self, Door};
use znet_ctl::store::SqliteStore;

use crate::common;

pub(crate) const NODE: NodeId = NodeId::from_bytes([3; 32]);
pub(crate) const ROOT: Door = Door::Socket { uid: 0 };
/// The roles, each of which may do what those before it may.
pub(crate) const ROLES: [&str; 3] = ["read", "deploy", "admin"];

/// What a route takes of whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Nothing,
    /// A role in the network concerned.
    Role(&'static str),
    /// A role in all networks.
    Everywhere(&'static str),
}

impl Takes {
    /// Whether the role, in one network or in all, is enough.
    pub(crate) fn allows(self, role: &str, all: bool) -> bool {
        let rank = |role: &str| ROLES.iter().position(|known| *known == role).unwrap();
        match self {
            Self::Nothing => true,
            Self::Role(needed) => rank(role) >= rank(needed),
            Self::Everywhere(needed) => all && rank(role) >= rank(needed),
        }
    }
}

/// A route with an example: a request that a furnished network of the name `acme` answers with this status.
#[derive(Debug)]
pub(crate) struct Route {
    method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) takes: Takes,
    /// The node, container, reservation, token or operator of the example.
    of: &'static str,
    pub(crate) body: &'static str,
    pub(crate) status: u16,
}

impl Route {
    pub(crate) fn method(&self) -> Method {
        self.method.parse().unwrap()
    }

    /// The example's path.
    pub(crate) fn at(&self, network: &str) -> String {
        let path = self.path.replace("{network}", network);
        ["{name}", "{node}", "{id}"].iter().fold(path, |path, part| path.replace(part, self.of))
    }
}

const fn route(
    method: &'static str,
    path: &'static str,
    takes: Takes,
    of: &'static str,
    body: &'static str,
    status: u16,
) -> Route {
    Route { method, path, takes, of, body, status }
}

const READ: Takes = Takes::Role("read");
const DEPLOY: Takes = Takes::Role("deploy");
const ADMIN: Takes = Takes::Role("admin");
const READ_ALL: Takes = Takes::Everywhere("read");
const ADMIN_ALL: Takes = Takes::Everywhere("admin");
const OPERATOR: &str = r#"{"note":"ci","role":"read"}"#;

const ACCESS: &str = r#"{"public_key":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="}"#;

/// All routes. The network goes last.
pub(crate) const ROUTES: [Route; 45] = [
    route("GET", "/healthz", Takes::Nothing, "", "", 200),
    route("GET", "/openapi.json", Takes::Nothing, "", "", 200),
    route("GET", "/metrics", READ_ALL, "", "", 200),
    route("GET", "/v1/tls", READ_ALL, "", "", 200),
    route("POST", "/v1/tls/promote", ADMIN_ALL, "", "", 409),
    route("POST", "/v1/tls/rotate", ADMIN_ALL, "", "{}", 200),
    route("POST", "/v1/tls/retire", ADMIN_ALL, "", "", 200),
    route("GET", "/v1/networks", READ, "", "", 200),
    route("POST", "/v1/networks", ADMIN_ALL, "", r#"{"name":"acme"}"#, 409),
    route("GET", "/v1/networks/{network}", READ, "", "", 200),
    route("PATCH", "/v1/networks/{network}", ADMIN, "", "{}", 200),
    route("GET", "/v1/networks/{network}/status", READ, "", "", 200),
    route("POST", "/v1/networks/{network}/epoch", ADMIN, "", "", 200),
    route("GET", "/v1/networks/{network}/key", READ, "", "", 200),
    route("POST", "/v1/networks/{network}/key", ADMIN, "", "", 200),
    route("POST", "/v1/networks/{network}/key/retire", ADMIN, "", "", 200),
    route("GET", "/v1/networks/{network}/controllers", READ, "", "", 200),
    route(
        "PUT",
        "/v1/networks/{network}/controllers",
        ADMIN,
        "",
        r#"{"addresses":["ctl.example:7443"]}"#,
        200,
    ),
    route("PATCH", "/v1/networks/{network}/controllers", ADMIN, "", "{}", 200),
    route("GET", "/v1/networks/{network}/tokens", READ, "", "", 200),
    route("POST", "/v1/networks/{network}/tokens", DEPLOY, "", "{}", 201),
    route("DELETE", "/v1/networks/{network}/tokens/{id}", DEPLOY, "none", "", 404),
    route("GET", "/v1/networks/{network}/nodes", READ, "", "", 200),
    route("GET", "/v1/networks/{network}/nodes/{node}", READ, "n1", "", 200),
    route("DELETE", "/v1/networks/{network}/nodes/{node}", ADMIN, "none", "", 404),
    route("GET", "/v1/networks/{network}/containers", READ, "", "", 200),
    route("GET", "/v1/networks/{network}/containers/{name}", READ, "web", "", 200),
    route("DELETE", "/v1/networks/{network}/containers/{name}", DEPLOY, "none", "", 404),
    route("POST", "/v1/networks/{network}/keys/rotate", DEPLOY, "", r#"{"containers":["web"]}"#, 200),
    route("GET", "/v1/networks/{network}/reservations", READ, "", "", 200),
    route("PUT", "/v1/networks/{network}/reservations/{name}", DEPLOY, "db", "{}", 200),
    route("DELETE", "/v1/networks/{network}/reservations/{name}", DEPLOY, "none", "", 204),
    route("GET", "/v1/networks/{network}/access", READ, "", "", 200),
    route("GET", "/v1/networks/{network}/access/{name}", READ, "none", "", 404),
    route("PUT", "/v1/networks/{network}/access/{name}", DEPLOY, "phone", ACCESS, 200),
    route("DELETE", "/v1/networks/{network}/access/{name}", DEPLOY, "none", "", 404),
    route("GET", "/v1/networks/{network}/garbage", READ, "", "", 200),
    route("POST", "/v1/networks/{network}/garbage", ADMIN, "", "", 200),
    route("GET", "/v1/networks/{network}/audit", READ, "", "", 200),
    route("GET", "/v1/audit", READ_ALL, "", "", 200),
    route("GET", "/v1/operators", ADMIN_ALL, "", "", 200),
    route("POST", "/v1/operators", ADMIN_ALL, "", OPERATOR, 201),
    route("DELETE", "/v1/operators/{id}", ADMIN_ALL, "0123456789abcdef", "", 404),
    route("POST", "/v1/backup", ADMIN_ALL, "", "", 200),
    route("DELETE", "/v1/networks/{network}", ADMIN_ALL, "", "", 200),
];

/// An answer: its status, its headers, its body as text and as JSON where it is some.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// Asserts that this is a problem document of this status and code.
    pub(crate) fn is_refusal(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        assert_eq!((&self.body["code"], &self.body["status"]), (&json!(code), &json!(status)));
        assert!(self.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", self.text);
        let challenge = if status == 401 { "Bearer" } else { "" };
        assert_eq!(self.header("www-authenticate"), challenge, "{}", self.text);
    }
}

pub(crate) struct World {
    pub(crate) hub: Arc<Hub>,
    pub(crate) router: Router,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let dir = common::directory();
        let data = DataDir::open(dir.path()).unwrap();
        let store = Arc::new(SqliteStore::open(&data.store_file()).unwrap());
        let advertise = vec!["ctl.example.net:7443".to_owned()];
        let hub = Hub::start(data, store, Clock::system(), advertise).await.unwrap();
        Self { router: rest::router(hub.clone()), hub, dir }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = to_bytes(response.into_body(), 64 << 20).await.unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer { status, headers, body, text }
    }

    pub(crate) async fn ask(
        &self,
        door: Door,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: &str,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path).extension(door);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    /// As the machine's root.
    pub(crate) async fn root(&self, method: Method, path: &str, body: &str) -> Answer {
        self.ask(ROOT, None, method, path, body).await
    }

    /// As the machine's root, who must not be refused.
    pub(crate) async fn ok(&self, method: Method, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.root(method.clone(), path, &body).await;
        assert!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.text);
        answer.body
    }

    /// The text of a new operator's token.
    pub(crate) async fn operator(&self, role: &str, network: Option<&str>) -> String {
        let body = json!({ "note": role, "role": role, "network": network });
        let made = self.ok(Method::POST, "/v1/operators", body).await;
        made["operator_token"].as_str().unwrap().to_owned()
    }

    /// Makes a network with a node, a container, a token and a reservation. Returns the token's handle.
    pub(crate) async fn furnish(&self, name: &str) -> String {
        let body = json!({ "name": name, "prefixes": ["10.77.0.0/24"] });
        self.ok(Method::POST, "/v1/networks", body).await;
        self.populate(name).await
    }

    /// Adds a node, a container, a token and a reservation to a network. Returns the token's handle.
    pub(crate) async fn populate(&self, name: &str) -> String {
        let hosted = self.hub.find(name).unwrap();
        let token =
            Command::CreateToken { label: None, uses: None, expires: None, lifetime: NodeLifetime::Lasting };
        let done = hosted.execute(token, Actor::Controller).await.unwrap();
        let Reply::Token { id, secret } = done.reply else { panic!("a token was asked for") };
        let join = Command::Join {
            secret: Some(secret),
            node: NODE,
            name: "n1".parse().unwrap(),
            endpoints: vec!["192.0.2.7:51820".parse().unwrap()],
            two_keys: true,
        };
        hosted.execute(join, Actor::Node(NODE)).await.unwrap();
        let attach = Command::Attach {
            node: NODE,
            name: "web".parse().unwrap(),
            addresses: vec![],
            public_key: None,
            port: None,
        };
        hosted.execute(attach, Actor::Node(NODE)).await.unwrap();
        let path = format!("/v1/networks/{name}/reservations/db");
        self.ok(Method::PUT, &path, json!({ "addresses": ["10.77.0.10"] })).await;
        id.to_string()
    }
}
