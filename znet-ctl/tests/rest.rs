//! The operators' door over a real store: every route, who may use it, and what it says when it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use http::{Method, Request, StatusCode};
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

const NODE: NodeId = NodeId::from_bytes([3; 32]);

struct World {
    hub: Arc<Hub>,
    router: Router,
    _dir: tempfile::TempDir,
}

/// An answer: its status, its kind, its body as JSON where it is some.
struct Answer {
    status: u16,
    kind: String,
    body: Value,
    text: String,
}

impl World {
    async fn new() -> Self {
        let dir = common::directory();
        let data = DataDir::open(dir.path()).unwrap();
        let store = Arc::new(SqliteStore::open(&data.store_file()).unwrap());
        let advertise = vec!["ctl.example.net:7443".to_owned()];
        let hub = Hub::start(data, store, Clock::system(), advertise).await.unwrap();
        Self { router: rest::router(hub.clone()), hub, _dir: dir }
    }

    async fn ask(&self, door: Door, token: Option<&str>, method: Method, path: &str, body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path).extension(door);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response =
            self.router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let text = to_bytes(response.into_body(), 64 << 20).await.unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer { status, kind: kind.unwrap_or_default(), body, text }
    }

    /// As the machine's root.
    async fn root(&self, method: Method, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(Door::Socket { uid: 0 }, None, method, path, &body).await
    }

    async fn ok(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.root(method.clone(), path, body).await;
        assert!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.text);
        answer.body
    }

    async fn operator(&self, role: &str, network: Option<&str>) -> String {
        let body = json!({ "note": role, "role": role, "network": network });
        let made = self.ok(Method::POST, "/v1/operators", body).await;
        made["operator_token"].as_str().unwrap().to_owned()
    }

    /// A network with a node, a container, a token, a reservation.
    async fn furnish(&self, name: &str) -> String {
        let body = json!({ "name": name, "prefixes": ["10.77.0.0/24"] });
        self.ok(Method::POST, "/v1/networks", body).await;
        let hosted = self.hub.find(name).unwrap();
        let token =
            Command::CreateToken { label: None, uses: None, expires: None, lifetime: NodeLifetime::Lasting };
        let done = hosted.execute(token, Actor::Controller).await.unwrap();
        let Reply::Token { id, secret } = done.reply else { panic!() };
        let join = Command::Join {
            secret: Some(secret),
            node: NODE,
            name: "n1".parse().unwrap(),
            endpoints: vec!["192.0.2.7:51820".parse().unwrap()],
        };
        hosted.execute(join, Actor::Node(NODE)).await.unwrap();
        let attach =
            Command::Attach { node: NODE, name: "web".parse().unwrap(), addresses: vec![], public_key: None };
        hosted.execute(attach, Actor::Node(NODE)).await.unwrap();
        let path = format!("/v1/networks/{name}/reservations/db");
        self.ok(Method::PUT, &path, json!({ "addresses": ["10.77.0.10"] })).await;
        id.to_string()
    }
}

fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert_eq!(answer.kind, "application/problem+json", "{}", answer.text);
    assert_eq!(answer.body["code"], code, "{}", answer.text);
    assert_eq!(answer.body["status"], status, "{}", answer.text);
    assert!(answer.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", answer.text);
}

#[tokio::test]
async fn every_route_does_what_it_says() {
    let world = World::new().await;
    let created = world.ok(Method::POST, "/v1/networks", json!({ "name": "acme", "rest_seconds": 60 })).await;
    assert!(created["prefix6"].as_str().unwrap().starts_with("fd"), "{created}");
    world.ok(Method::DELETE, "/v1/networks/acme", Value::Null).await;
    let token = world.furnish("acme").await;
    let get = |path: &'static str| world.ok(Method::GET, path, Value::Null);
    assert_eq!(get("/v1/networks").await.as_array().unwrap().len(), 1);
    let network = get("/v1/networks/acme").await;
    let by_id = format!("/v1/networks/{}", network["id"].as_str().unwrap());
    assert_eq!(world.ok(Method::GET, &by_id, Value::Null).await, network);
    assert_eq!((&network["nodes"], &network["containers"]), (&json!(1), &json!(1)));
    let changed =
        world.ok(Method::PATCH, "/v1/networks/acme", json!({ "reserved": ["10.77.0.128/25"] })).await;
    assert_eq!((&changed["reserved"], &changed["rest_seconds"]), (&json!(["10.77.0.128/25"]), &json!(600)));
    let status = get("/v1/networks/acme/status").await;
    assert_eq!((&status["writable"], &status["nodes"][0]["name"]), (&json!(true), &json!("n1")));
    let epoch = world.ok(Method::POST, "/v1/networks/acme/epoch", Value::Null).await;
    assert!(epoch["epoch"].as_u64() > changed["epoch"].as_u64(), "{epoch}");
    let made = world.ok(Method::POST, "/v1/networks/acme/tokens", json!({ "label": "ci", "uses": 2 })).await;
    let join: znet_api::token::JoinToken = made["join_token"].as_str().unwrap().parse().unwrap();
    assert_eq!((join.pin, join.endpoints.as_slice()), (world.hub.pin(), world.hub.advertise()));
    let listed = get("/v1/networks/acme/tokens").await;
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains("join_token"));
    let gone = world.ok(Method::DELETE, "/v1/networks/acme/tokens/ci", Value::Null).await;
    assert_eq!(gone["revoked"], json!(true));
    let by_handle = format!("/v1/networks/acme/tokens/{token}");
    assert_eq!(world.ok(Method::DELETE, &by_handle, Value::Null).await["used"], json!(1));
    assert_eq!(get("/v1/networks/acme/nodes").await[0]["endpoints"], json!(["192.0.2.7:51820"]));
    assert_eq!(get("/v1/networks/acme/nodes/n1").await["id"], json!(NODE.to_string()));
    let containers = get("/v1/networks/acme/containers").await;
    assert_eq!(containers[0]["addresses"][1], json!("10.77.0.1"), "{containers}");
    assert_eq!(get("/v1/networks/acme/containers/web").await, containers[0]);
    let kept = get("/v1/networks/acme/reservations").await;
    assert_eq!((&kept[0]["name"], &kept[0]["attached"]), (&json!("db"), &json!(false)));
    world.ok(Method::DELETE, "/v1/networks/acme/reservations/db", Value::Null).await;
    let removed = world.ok(Method::DELETE, "/v1/networks/acme/containers/web", Value::Null).await;
    assert_eq!(removed, json!({ "nodes": 0, "containers": 1 }));
    let removed = world.ok(Method::DELETE, "/v1/networks/acme/nodes/n1", Value::Null).await;
    assert_eq!(removed, json!({ "nodes": 1, "containers": 0 }));
    let trail = get("/v1/networks/acme/audit?limit=3").await;
    assert_eq!(trail.as_array().unwrap().len(), 3);
    let after = format!("/v1/networks/acme/audit?after={}", trail[2]["seq"]);
    let rest = world.ok(Method::GET, &after, Value::Null).await;
    assert!(rest.as_array().unwrap().iter().any(|record| record["action"] == "node.remove"), "{rest}");
    let health = get("/healthz").await;
    assert_eq!((&health["status"], &health["networks"]), (&json!("ok"), &json!(1)));
    let metrics = world.root(Method::GET, "/metrics", Value::Null).await.text;
    assert!(metrics.contains("znet_networks 1"), "{metrics}");
    let backup = world.root(Method::POST, "/v1/backup", Value::Null).await;
    assert!(backup.status == 200 && backup.text.starts_with("znet backup 1 sha256="));
}

#[tokio::test]
async fn roles_and_scopes_allow_what_they_say_and_no_more() {
    let world = World::new().await;
    world.furnish("acme").await;
    world.furnish("other").await;
    let mut tokens = Vec::new();
    for role in ["read", "deploy", "admin"] {
        tokens.push((role, world.operator(role, Some("acme")).await, world.operator(role, None).await));
    }
    // Route, body, the role that it takes, and whether in all networks.
    let routes = [
        (Method::GET, "/v1/networks/acme", "", 0, false),
        (Method::GET, "/v1/networks/acme/status", "", 0, false),
        (Method::GET, "/v1/networks/acme/tokens", "", 0, false),
        (Method::GET, "/v1/networks/acme/nodes", "", 0, false),
        (Method::GET, "/v1/networks/acme/containers", "", 0, false),
        (Method::GET, "/v1/networks/acme/reservations", "", 0, false),
        (Method::GET, "/v1/networks/acme/audit", "", 0, false),
        (Method::GET, "/metrics", "", 0, true),
        (Method::POST, "/v1/networks/acme/tokens", "{}", 1, false),
        (Method::PUT, "/v1/networks/acme/reservations/db", "{}", 1, false),
        (Method::DELETE, "/v1/networks/acme/reservations/none", "", 1, false),
        (Method::PATCH, "/v1/networks/acme", "{}", 2, false),
        (Method::POST, "/v1/networks/acme/epoch", "", 2, false),
        (Method::POST, "/v1/networks", "{\"name\":\"x!\"}", 2, true),
        (Method::GET, "/v1/operators", "", 2, true),
        (Method::POST, "/v1/backup", "", 2, true),
    ];
    for (method, path, body, needed, everywhere) in routes {
        for (rank, (role, scoped, all)) in tokens.iter().enumerate() {
            for (token, is_all) in [(scoped, false), (all, true)] {
                let answer = world.ask(Door::Tls, Some(token), method.clone(), path, body).await;
                let allowed = rank >= needed && (is_all || !everywhere);
                let what = format!("{method} {path} as {role} (all networks: {is_all}): {}", answer.text);
                if allowed {
                    assert!(answer.status < 300 || answer.status == 400, "{what}");
                } else {
                    assert_eq!(
                        (answer.status, &answer.body["code"]),
                        (403, &json!("not_permitted")),
                        "{what}"
                    );
                }
            }
        }
        let answer = world.ask(Door::Tls, None, method.clone(), path, body).await;
        refused(&answer, 401, "no_valid_token");
    }
    // A network out of scope is like one that does not exist.
    let (_, scoped, all) = &tokens[2];
    let hidden = world.ask(Door::Tls, Some(scoped), Method::GET, "/v1/networks/other", "").await;
    let missing = world.ask(Door::Tls, Some(scoped), Method::GET, "/v1/networks/none0", "").await;
    refused(&hidden, 404, "unknown_network");
    assert_eq!(hidden.text.replace("other", "none0"), missing.text);
    let listed = world.ask(Door::Tls, Some(scoped), Method::GET, "/v1/networks", "").await;
    assert_eq!(listed.body.as_array().unwrap().len(), 1);
    // A revoked operator is refused at once.
    let operators = world.ask(Door::Tls, Some(all), Method::GET, "/v1/operators", "").await;
    assert!(!operators.text.contains("znop1."));
    for operator in operators.body.as_array().unwrap() {
        let path = format!("/v1/operators/{}", operator["id"].as_str().unwrap());
        world.ok(Method::DELETE, &path, Value::Null).await;
    }
    let answer = world.ask(Door::Tls, Some(all), Method::GET, "/v1/networks", "").await;
    refused(&answer, 401, "no_valid_token");
    for public in ["/healthz", "/openapi.json"] {
        assert_eq!(world.ask(Door::Tls, None, Method::GET, public, "").await.status, 200);
    }
}

#[tokio::test]
async fn what_is_wrong_is_a_problem_document_and_changes_nothing() {
    let world = World::new().await;
    world.furnish("acme").await;
    let before = world.ok(Method::GET, "/v1/networks/acme", Value::Null).await;
    let networks = "/v1/networks";
    let raw = |method: Method, path: &'static str, body: &'static str| {
        let world = &world;
        async move { world.ask(Door::Socket { uid: 0 }, None, method, path, body).await }
    };
    for (method, path, body, status, code) in [
        (Method::POST, networks, "{", 400, "invalid_argument"),
        (Method::POST, networks, "{\"name\":\"x\",\"prefix\":1}", 400, "invalid_argument"),
        (Method::POST, networks, "[]", 400, "invalid_argument"),
        (Method::POST, networks, "{\"name\":\"No\"}", 400, "invalid_argument"),
        (Method::POST, networks, "{\"name\":\"acme\"}", 409, "name_taken"),
        (Method::POST, networks, "{\"name\":\"x\",\"prefixes\":[\"8.8.8.0/24\"]}", 422, "unusable_prefix"),
        (
            Method::POST,
            networks,
            "{\"name\":\"x\",\"prefixes\":[\"10.0.0.0/8\",\"10.1.0.0/16\"]}",
            422,
            "overlapping_prefixes",
        ),
        (
            Method::POST,
            networks,
            "{\"name\":\"x\",\"prefixes\":[\"fd00:1::/48\",\"fd00:2::/48\"]}",
            422,
            "too_many_prefixes",
        ),
        (Method::GET, "/v1/networks/none", "", 404, "unknown_network"),
        (Method::GET, "/v1/networks/acme/nodes/none", "", 404, "unknown_node"),
        (Method::GET, "/v1/networks/acme/containers/none", "", 404, "unknown_container"),
        (Method::DELETE, "/v1/networks/acme/containers/none", "", 404, "unknown_container"),
        (Method::DELETE, "/v1/networks/acme/tokens/0123456789abcdef", "", 404, "no_such_token"),
        (Method::DELETE, "/v1/networks/acme/tokens/zz", "", 400, "invalid_argument"),
        (Method::POST, "/v1/networks/acme/tokens", "{\"uses\":0}", 400, "invalid_argument"),
        (
            Method::PUT,
            "/v1/networks/acme/reservations/x",
            "{\"addresses\":[\"10.99.0.1\"]}",
            422,
            "outside_prefix",
        ),
        (
            Method::PUT,
            "/v1/networks/acme/reservations/x",
            "{\"addresses\":[\"10.77.0.10\"]}",
            409,
            "address_taken",
        ),
        (Method::GET, "/v1/networks/acme/audit?limit=x", "", 400, "invalid_argument"),
        (Method::GET, "/v1/networks/acme/audit?lim=1", "", 400, "invalid_argument"),
        (Method::GET, "/nothing", "", 404, "unknown_path"),
        (Method::DELETE, "/healthz", "", 405, "method_not_allowed"),
        (Method::DELETE, "/v1/operators/0123456789abcdef", "", 404, "unknown_operator"),
    ] {
        refused(&raw(method, path, body).await, status, code);
    }
    let large = "x".repeat(rest::MAX_BODY + 1);
    let answer = world.ask(Door::Socket { uid: 0 }, None, Method::POST, networks, &large).await;
    refused(&answer, StatusCode::PAYLOAD_TOO_LARGE.as_u16(), "too_large");
    for bad in ["znop1.", "znop1.AAAA", "znet1.x", "é"] {
        refused(&world.ask(Door::Tls, Some(bad), Method::GET, networks, "").await, 401, "no_valid_token");
    }
    assert_eq!(world.ok(Method::GET, "/v1/networks/acme", Value::Null).await, before);
}

#[tokio::test]
async fn the_openapi_document_describes_every_route_and_nothing_else() {
    let world = World::new().await;
    world.furnish("acme").await;
    let document = world.ok(Method::GET, "/openapi.json", Value::Null).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            described.insert(format!("{} {path}", method.to_uppercase()));
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            let public = ["/healthz", "/openapi.json"].contains(&path.as_str());
            assert_eq!(operation["security"].is_array(), !public, "{method} {path}");
            // Each one exists: with another network's name the answer is about that, not about the path.
            let path = path.replace("{network}", "none").replace("{name}", "x").replace("{node}", "x");
            let path = path.replace("{id}", "0123456789abcdef");
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = world.root(method.clone(), &path, Value::Null).await;
            let code = answer.body["code"].as_str().unwrap_or_default().to_owned();
            assert!(!["unknown_path", "method_not_allowed"].contains(&code.as_str()), "{method} {path}");
        }
    }
    assert_eq!(described.len(), 27, "{described:#?}");
    assert_eq!(document["components"]["securitySchemes"]["operator"]["scheme"], "bearer");
    assert!(document["components"]["schemas"]["Problem"].is_object());
}
