//! The operators' door over a real store: every route, who may use it, and what it says when it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;
#[path = "rest/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Extension;
use axum::body::Body;
use http::{Method, Request};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use znet_api::client::{ClientError, ControllerClient, Target};
use znet_api::rest::{
    ChangeNetwork, CreateAccess, CreateNetwork, CreateOperator, CreateToken, OperatorRole, Removed, Reserve,
};
use znet_api::token::{JoinToken, OperatorToken};
use znet_core::controller::{AccessPoint, Command};
use znet_ctl::rest::{self, Door};

use world::{NODE, ROLES, ROOT, ROUTES, Route, Takes, World};

/// A person's public key.
const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// A task that is ended when this is dropped.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The client library, connected to the door by a Unix socket.
fn client(world: &World) -> (ControllerClient, Task) {
    let path = world.dir.path().join("rest.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let router = world.router.clone().layer(Extension(ROOT));
    let served = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (ControllerClient::new(Target::Socket(path)), Task(served))
}

#[tokio::test]
async fn the_client_library_can_use_every_route() {
    let world = World::new().await;
    let (client, _served) = client(&world);
    let prefixes = vec!["10.77.0.0/24".parse().unwrap()];
    let create =
        CreateNetwork { name: "acme".to_owned(), prefixes, rest_seconds: Some(60), ..<_>::default() };
    let created = client.create_network(&create).await.unwrap();
    assert!(created.prefix6.to_string().starts_with("fd"), "{created:?}");
    assert_eq!((created.nodes, created.rest_seconds), (0, 60));
    let handle = world.populate("acme").await;
    let network = client.network("acme").await.unwrap();
    assert_eq!((network.nodes, network.containers, &network.id), (1, 1, &created.id));
    assert_eq!(client.network(&network.id).await.unwrap(), network);
    assert_eq!(client.networks().await.unwrap(), std::slice::from_ref(&network));
    let reserved = vec!["10.77.0.128/25".parse().unwrap()];
    let change = ChangeNetwork { reserved: Some(reserved.clone()), ..<_>::default() };
    let changed = client.change_network("acme", &change).await.unwrap();
    assert_eq!((changed.reserved, changed.rest_seconds), (reserved, 60), "what is absent stays");
    let status = client.status("acme").await.unwrap();
    assert_eq!((status.writable, status.nodes.len(), status.digest.len()), (true, 1, 64));
    assert!(client.new_epoch("acme").await.unwrap().epoch > network.epoch);

    let create = CreateToken { label: Some("ci".to_owned()), uses: Some(2), ..<_>::default() };
    let made = client.create_token("acme", &create).await.unwrap();
    let join: JoinToken = made.join_token.parse().unwrap();
    assert_eq!((join.pin, join.endpoints.as_slice()), (world.hub.pin(), world.hub.advertise()));
    let hosted = world.hub.find("acme").unwrap();
    assert_eq!((join.network, join.verifying_key), (hosted.id(), hosted.verifying_key().unwrap()));
    assert_eq!((join.name.as_str(), join.id.to_string()), ("acme", made.token.id.clone()));
    assert_eq!(client.tokens("acme").await.unwrap().len(), 2);
    assert!(client.revoke_token("acme", "ci").await.unwrap().revoked);
    let by_handle = client.revoke_token("acme", &handle).await.unwrap();
    assert_eq!((by_handle.used, by_handle.revoked), (1, true));

    let nodes = client.nodes("acme").await.unwrap();
    assert_eq!(
        (nodes[0].endpoints.as_slice(), nodes[0].containers),
        (&["192.0.2.7:51820".to_owned()][..], 1)
    );
    assert_eq!(client.node("acme", "n1").await.unwrap(), nodes[0]);
    assert_eq!(client.node("acme", &NODE.to_string()).await.unwrap().id, NODE.to_string());
    let containers = client.containers("acme").await.unwrap();
    assert_eq!(
        (containers[0].node.as_str(), containers[0].addresses[1].to_string().as_str()),
        ("n1", "10.77.0.1")
    );
    assert_eq!(client.container("acme", "web").await.unwrap(), containers[0]);
    let address = "10.77.0.20".parse().unwrap();
    let kept = client.reserve("acme", "db2", &Reserve { addresses: vec![address] }).await.unwrap();
    assert!(kept.addresses.contains(&address) && kept.addresses.len() == 2 && !kept.attached, "{kept:?}");
    let names: Vec<_> =
        client.reservations("acme").await.unwrap().into_iter().map(|kept| kept.name).collect();
    assert_eq!(names, ["db", "db2"]);
    client.unreserve("acme", "db").await.unwrap();
    let create = CreateAccess { via: Some("n1".to_owned()), public_key: KEY.to_owned(), addresses: vec![] };
    let made = client.create_access("acme", "phone", &create).await.unwrap();
    assert_eq!(client.access("acme", "phone").await.unwrap(), made);
    assert_eq!(client.accesses("acme").await.unwrap(), [made]);
    let gone = client.revoke_access("acme", "phone").await.unwrap();
    assert_eq!(gone, Removed { nodes: 0, containers: 0 }, "its node has not made it yet");
    let one = client.remove_container("acme", "web").await.unwrap();
    assert_eq!(one, Removed { nodes: 0, containers: 1 });
    assert_eq!(client.remove_node("acme", "n1").await.unwrap(), Removed { nodes: 1, containers: 0 });

    let first = client.audit("acme", 0, 3).await.unwrap();
    assert_eq!(
        (first.len(), first[0].action.as_str(), first[0].actor.as_str()),
        (3, "network.create", "local:0")
    );
    let others = client.audit("acme", first[2].seq, 1_000).await.unwrap();
    assert!(
        others.iter().any(|record| record.action == "node.remove" && record.actor == "local:0"),
        "{others:?}"
    );
    let create = CreateOperator {
        note: "ci".to_owned(),
        role: OperatorRole::Deploy,
        network: Some("acme".to_owned()),
    };
    let made = client.create_operator(&create).await.unwrap();
    assert_eq!(
        (made.pin.as_str(), made.operator.network.as_deref()),
        (&*world.hub.pin().to_string(), Some("acme"))
    );
    assert_eq!(client.operators().await.unwrap(), std::slice::from_ref(&made.operator));
    client.revoke_operator(&made.operator.id).await.unwrap();
    assert!(client.operators().await.unwrap().is_empty());
    let health = client.health().await.unwrap();
    assert_eq!((health.status.as_str(), health.networks, health.pin), ("ok", 1, world.hub.pin().to_string()));
    assert!(client.backup().await.unwrap().starts_with(b"znet backup 1 sha256="));
    client.delete_network("acme").await.unwrap();
    let Err(ClientError::Problem(gone)) = client.network("acme").await else { panic!("it was deleted") };
    assert_eq!((gone.status, gone.code.as_str()), (404, "unknown_network"));
}

#[tokio::test]
async fn each_role_opens_what_it_says_and_no_more() {
    let world = World::new().await;
    world.furnish("acme").await;
    let mut operators = Vec::new();
    for role in ROLES {
        operators.push((role, false, world.operator(role, Some("acme")).await));
        operators.push((role, true, world.operator(role, None).await));
    }
    for route in &ROUTES {
        let (method, at) = (route.method(), route.at("acme"));
        if route.takes == Takes::Nothing {
            assert_eq!(world.ask(Door::Tls, None, method, &at, "").await.status, route.status, "{route:?}");
            continue;
        }
        for token in [None, Some("znop1.AAAA"), Some("no-token")] {
            let answer = world.ask(Door::Tls, token, method.clone(), &at, route.body).await;
            answer.is_refusal(401, "no_valid_token");
        }
        // Who came in by no known door is not taken for root.
        let unmarked = Request::builder().method(method.clone()).uri(&at).body(Body::empty()).unwrap();
        world.send(unmarked).await.is_refusal(401, "no_valid_token");
        for (role, all, token) in &operators {
            let answer = world.ask(Door::Tls, Some(token), method.clone(), &at, route.body).await;
            let who = format!("{role}, all networks: {all}: {route:?}: {}", answer.text);
            if route.takes.allows(role, *all) {
                assert_eq!(answer.status, route.status, "{who}");
                continue;
            }
            answer.is_refusal(403, "not_permitted");
            let (Takes::Role(needed) | Takes::Everywhere(needed)) = route.takes else { panic!("{who}") };
            assert!(answer.body["detail"].as_str().unwrap().contains(&format!("the role {needed}")), "{who}");
        }
    }
    assert!(world.hub.networks().is_empty(), "only the last of all may delete the network");
}

#[tokio::test]
async fn a_network_out_of_scope_is_like_one_that_does_not_exist() {
    let world = World::new().await;
    world.furnish("acme").await;
    world.furnish("other").await;
    let before = world.ok(Method::GET, "/v1/networks/other", Value::Null).await;
    let id = before["id"].as_str().unwrap();
    let token = world.operator("admin", Some("acme")).await;
    for route in ROUTES.iter().filter(|route| route.path.contains("{network}")) {
        let (method, token) = (route.method(), Some(token.as_str()));
        let missing = world.ask(Door::Tls, token, method.clone(), &route.at("none0"), route.body).await;
        missing.is_refusal(404, "unknown_network");
        for hidden in ["other", id] {
            let answer = world.ask(Door::Tls, token, method.clone(), &route.at(hidden), route.body).await;
            assert_eq!(answer.text.replace(hidden, "none0"), missing.text, "{route:?}");
            assert_eq!(answer.status, missing.status, "{route:?}");
        }
    }
    let listed = world.ask(Door::Tls, Some(&token), Method::GET, "/v1/networks", "").await;
    let names: Vec<_> = listed.body.as_array().unwrap().iter().map(|network| &network["name"]).collect();
    assert_eq!(names, ["acme"]);
    assert_eq!(world.ok(Method::GET, "/v1/networks/other", Value::Null).await, before);
    // Once its network is gone the token opens nothing, also not a new network of the same name.
    world.ok(Method::DELETE, "/v1/networks/acme", Value::Null).await;
    world.furnish("acme").await;
    let answer = world.ask(Door::Tls, Some(&token), Method::GET, "/v1/networks/acme", "").await;
    answer.is_refusal(404, "unknown_network");
}

#[tokio::test]
async fn a_revoked_operator_is_refused_at_once() {
    let world = World::new().await;
    let made = world.ok(Method::POST, "/v1/operators", json!({ "note": "ci", "role": "admin" })).await;
    let (token, id) = (made["operator_token"].as_str(), made["id"].as_str().unwrap());
    let path = format!("/v1/operators/{id}");
    assert_eq!(world.ask(Door::Tls, token, Method::GET, "/v1/networks", "").await.status, 200);
    // It may revoke itself, and that is the last that it does.
    assert_eq!(world.ask(Door::Tls, token, Method::DELETE, &path, "").await.status, 204);
    for route in ROUTES.iter().filter(|route| route.takes != Takes::Nothing) {
        let answer = world.ask(Door::Tls, token, route.method(), &route.at("acme"), route.body).await;
        answer.is_refusal(401, "no_valid_token");
    }
    world.root(Method::DELETE, &path, "").await.is_refusal(404, "unknown_operator");
}

#[tokio::test]
async fn what_is_wrong_is_a_problem_document_and_changes_nothing() {
    let world = World::new().await;
    world.furnish("acme").await;
    let before = world.ok(Method::GET, "/v1/networks/acme", Value::Null).await;
    let (networks, tokens) = ("/v1/networks", "/v1/networks/acme/tokens");
    let kept = "/v1/networks/acme/reservations/x";
    let access = "/v1/networks/acme/access/x";
    let keys = "/v1/networks/acme/keys/rotate";
    for (method, path, body, status, code) in [
        ("POST", networks, "{", 400, "invalid_argument"),
        ("POST", networks, "\u{0}", 400, "invalid_argument"),
        ("POST", networks, r#"{"name":"x","prefix":1}"#, 400, "invalid_argument"),
        ("POST", networks, r#"{"name":"x","prefixes":["10.0.0.0/33"]}"#, 400, "invalid_argument"),
        ("POST", networks, "[]", 400, "invalid_argument"),
        ("POST", networks, "", 400, "invalid_argument"),
        ("POST", networks, r#"{"name":"No"}"#, 400, "invalid_argument"),
        ("POST", networks, r#"{"name":"x","rest_seconds":18446744073709551615}"#, 400, "invalid_argument"),
        ("POST", networks, r#"{"name":"acme"}"#, 409, "name_taken"),
        ("POST", networks, r#"{"name":"x","prefixes":["8.8.8.0/24"]}"#, 422, "unusable_prefix"),
        ("POST", networks, r#"{"name":"x","prefixes":["2001:db8::/48"]}"#, 422, "unusable_prefix"),
        (
            "POST",
            networks,
            r#"{"name":"x","prefixes":["10.0.0.0/8","10.1.0.0/16"]}"#,
            422,
            "overlapping_prefixes",
        ),
        (
            "POST",
            networks,
            r#"{"name":"x","prefixes":["fd00:1::/48","fd00:2::/48"]}"#,
            422,
            "too_many_prefixes",
        ),
        ("PATCH", "/v1/networks/acme", r#"{"name":"other"}"#, 400, "invalid_argument"),
        ("PATCH", "/v1/networks/acme", r#"{"rest_seconds":-1}"#, 400, "invalid_argument"),
        ("PATCH", "/v1/networks/acme", r#"{"reserved":["10.78.0.0/24"]}"#, 422, "reserved_outside"),
        ("GET", "/v1/networks/none", "", 404, "unknown_network"),
        ("GET", "/v1/networks/a%2fb", "", 404, "unknown_network"),
        ("GET", "/v1/networks/%ff", "", 400, "invalid_argument"),
        ("GET", "/v1/networks/acme/nodes/none", "", 404, "unknown_node"),
        ("GET", "/v1/networks/acme/containers/none", "", 404, "unknown_container"),
        ("GET", "/v1/networks/acme/containers/No", "", 400, "invalid_argument"),
        ("DELETE", "/v1/networks/acme/containers/none", "", 404, "unknown_container"),
        ("DELETE", "/v1/networks/acme/tokens/0123456789abcdef", "", 404, "no_such_token"),
        ("DELETE", "/v1/networks/acme/tokens/no-such-label", "", 404, "no_such_token"),
        ("POST", tokens, r#"{"uses":0}"#, 400, "invalid_argument"),
        ("POST", tokens, r#"{"uses":2147483648}"#, 400, "invalid_argument"),
        ("POST", tokens, r#"{"expires_in_seconds":18446744073709551615}"#, 400, "invalid_argument"),
        ("PUT", kept, r#"{"addresses":["10.99.0.1"]}"#, 422, "outside_prefix"),
        ("PUT", kept, r#"{"addresses":["10.77.0.10"]}"#, 409, "address_taken"),
        ("PUT", kept, r#"{"addresses":["10.77.0.300"]}"#, 400, "invalid_argument"),
        ("PUT", access, "{}", 400, "invalid_argument"),
        ("PUT", access, r#"{"public_key":"AAAA"}"#, 400, "invalid_argument"),
        ("PUT", access, &format!(r#"{{"public_key":"{}"}}"#, "A".repeat(43) + "="), 422, "unusable_key"),
        ("PUT", access, &format!(r#"{{"public_key":"{KEY}","via":"none"}}"#), 422, "unknown_node"),
        ("PUT", access, &format!(r#"{{"public_key":"{KEY}","port":1}}"#), 400, "invalid_argument"),
        (
            "PUT",
            access,
            &format!(r#"{{"public_key":"{KEY}","addresses":["10.9.0.1"]}}"#),
            422,
            "outside_prefix",
        ),
        ("PUT", "/v1/networks/acme/access/web", &format!(r#"{{"public_key":"{KEY}"}}"#), 409, "name_taken"),
        ("GET", access, "", 404, "unknown_access"),
        ("POST", keys, r#"{"containers":["none"]}"#, 422, "unknown_container"),
        ("POST", keys, r#"{"node":"none"}"#, 422, "unknown_node"),
        ("POST", keys, r#"{"containers":["web"],"all":true}"#, 422, "one_of_three"),
        ("POST", "/v1/networks/none/keys/rotate", r#"{"containers":["web"]}"#, 404, "unknown_network"),
        ("DELETE", access, "", 404, "unknown_access"),
        ("GET", "/v1/networks/acme/audit?limit=x", "", 400, "invalid_argument"),
        ("GET", "/v1/networks/acme/audit?lim=1", "", 400, "invalid_argument"),
        ("GET", "/v1/networks/acme/audit?limit=9223372036854775808", "", 400, "invalid_argument"),
        ("GET", "/v1/audit?after=9223372036854775808", "", 400, "invalid_argument"),
        ("POST", tokens, "", 400, "invalid_argument"),
        ("POST", tokens, "[]", 400, "invalid_argument"),
        ("POST", tokens, r#"{"uses":1.5}"#, 400, "invalid_argument"),
        ("PUT", kept, "[]", 400, "invalid_argument"),
        ("GET", "/nothing", "", 404, "unknown_path"),
        ("GET", "/v1/networks/", "", 404, "unknown_path"),
        ("DELETE", "/v1/operators/zz", "", 400, "invalid_argument"),
        ("POST", "/v1/operators", r#"{"note":"x","role":"root"}"#, 400, "invalid_argument"),
        ("POST", "/v1/operators", r#"{"note":"a\nb","role":"read"}"#, 400, "invalid_argument"),
        ("POST", "/v1/operators", r#"{"note":"x","role":"read","network":"none"}"#, 422, "unknown_network"),
    ] {
        let answer = world.root(method.parse().unwrap(), path, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.text);
        answer.is_refusal(status, code);
    }
    // What came in is repeated in part at most.
    let long = "x".repeat(10_000);
    let answers = [
        world.root(Method::GET, &format!("/{long}"), "").await,
        world.root(Method::POST, networks, &json!({ "name": long }).to_string()).await,
        world.root(Method::POST, networks, &json!({ &*long: 1 }).to_string()).await,
        world.root(Method::GET, &format!("/v1/networks/{long}"), "").await,
    ];
    for answer in answers {
        assert!(answer.status >= 400 && answer.text.len() < 1_000, "{} bytes", answer.text.len());
    }
    assert_eq!(world.ok(Method::GET, "/v1/networks/acme", Value::Null).await, before);
}

#[tokio::test]
async fn a_body_may_be_as_large_as_the_limit_and_no_larger() {
    let world = World::new().await;
    let mut body = json!({ "name": "acme" }).to_string();
    body.push_str(&" ".repeat(rest::MAX_BODY + 1 - body.len()));
    let answer = world.root(Method::POST, "/v1/networks", &body).await;
    answer.is_refusal(413, "too_large");
    body.pop();
    assert_eq!(world.root(Method::POST, "/v1/networks", &body).await.status, 201);
}

#[tokio::test]
async fn the_audit_trail_comes_in_pages_of_a_bounded_size() {
    let world = World::new().await;
    world.ok(Method::POST, "/v1/networks", json!({ "name": "acme" })).await;
    for _ in 0..120 {
        world.ok(Method::POST, "/v1/networks/acme/tokens", json!({})).await;
    }
    let page = |query: &'static str| {
        let world = &world;
        async move {
            let path = format!("/v1/networks/acme/audit{query}");
            world.ok(Method::GET, &path, Value::Null).await.as_array().unwrap().len()
        }
    };
    let sizes = (page("").await, page("?limit=7").await, page("?limit=9223372036854775807").await);
    assert_eq!(sizes, (100, 7, 121));
    assert_eq!(page("?after=9223372036854775807").await, 0);
}

#[tokio::test]
async fn two_changes_of_settings_at_once_both_last() {
    let world = World::new().await;
    world.furnish("acme").await;
    for round in 1..=50u64 {
        let range = format!("10.77.0.{}/32", 100 + round);
        let (reserved, rest) = (json!({ "reserved": [&range] }), json!({ "rest_seconds": round }));
        let path = "/v1/networks/acme";
        tokio::join!(world.ok(Method::PATCH, path, reserved), world.ok(Method::PATCH, path, rest));
        let network = world.ok(Method::GET, path, Value::Null).await;
        assert_eq!((&network["reserved"], &network["rest_seconds"]), (&json!([range]), &json!(round)));
    }
}

/// A place where a log is written to and read from.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_secret_is_in_the_answer_that_made_it_and_nowhere_else() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // For the whole process: what the other tests log meanwhile is looked at as well.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let world = World::new().await;
    world.furnish("acme").await;
    let made = world.ok(Method::POST, "/v1/networks/acme/tokens", json!({ "label": "ci" })).await;
    let join = made["join_token"].as_str().unwrap().to_owned();
    let operator = world.operator("admin", None).await;
    let mut seen = String::new();
    // The description names the fields in which secrets are sent, so it is not among what is looked at.
    let looked_at = |route: &&Route| route.method() == Method::GET && route.path != "/openapi.json";
    for route in ROUTES.iter().filter(looked_at) {
        seen += &world.ask(Door::Tls, Some(&operator), Method::GET, &route.at("acme"), "").await.text;
    }
    // Also when it is put where a handle belongs.
    for path in [format!("/v1/networks/acme/tokens/{join}"), format!("/v1/operators/{operator}")] {
        assert!(world.ask(Door::Tls, Some(&operator), Method::DELETE, &path, "").await.status >= 400);
    }
    let everything = world.hub.audit(None, 0, 1_000).await.unwrap();
    assert!(everything.iter().any(|record| record.action == "operator.create"), "{everything:?}");
    seen += &format!("{everything:?}");
    seen += &String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let (id, route) = (made["id"].as_str().unwrap(), "/v1/networks/{network}/tokens/{id}");
    assert!(seen.contains(id) && seen.contains(route), "the lists and the log were looked at");
    let secrets = [
        join.parse::<JoinToken>().unwrap().secret.to_bytes(),
        operator.parse::<OperatorToken>().unwrap().secret.to_bytes(),
    ];
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for secret in secrets.iter().map(|secret| hexadecimal(secret.as_slice())) {
        assert!(!seen.to_lowercase().contains(&secret));
    }
    assert!(!seen.contains(&join) && !seen.contains(&operator));
    assert!(!seen.contains("join_token\":") && !seen.contains("operator_token\":"));
}

#[tokio::test]
async fn every_answer_is_counted_by_its_status() {
    let world = World::new().await;
    world.root(Method::GET, "/healthz", "").await;
    world.root(Method::GET, "/nothing", "").await;
    world.root(Method::DELETE, "/healthz", "").await;
    world.ask(Door::Tls, None, Method::GET, "/v1/networks", "").await;
    let metrics = world.root(Method::GET, "/metrics", "").await;
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    for status in [200, 404, 405, 401] {
        let line = format!("znet_requests_total{{door=\"rest\",status=\"{status}\"}} 1");
        assert!(metrics.text.lines().any(|found| found == line), "{line} is not in\n{}", metrics.text);
    }
}

/// Every reference in a document.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_openapi_document_describes_every_route_and_nothing_else() {
    let world = World::new().await;
    let document = world.ok(Method::GET, "/openapi.json", Value::Null).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let mut identifiers = BTreeSet::new();
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            described.insert((method.to_uppercase(), path.as_str()));
            let what = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{what} has no summary");
            assert!(identifiers.insert(operation["operationId"].as_str().unwrap()), "{what}: not unique");
            let route =
                ROUTES.iter().find(|r| r.path == path && *r.method().as_str() == method.to_uppercase());
            let public = route.is_some_and(|route| route.takes == Takes::Nothing);
            assert_eq!(operation["security"], if public { Value::Null } else { json!([{ "operator": [] }]) });
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.values().all(|response| response["description"].is_string()), "{what}");
            let refusal = &operation["responses"]["default"]["content"]["application/problem+json"];
            let problem = if public { &Value::Null } else { &json!("#/components/schemas/Problem") };
            assert_eq!(&refusal["schema"]["$ref"], problem, "{what}");
            let named = operation["parameters"].as_array().into_iter().flatten();
            let named: BTreeSet<_> = named
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| format!("{{{}}}", parameter["name"].as_str().unwrap()))
                .collect();
            let parts = path.split('/').filter(|part| part.starts_with('{')).map(str::to_owned).collect();
            assert_eq!(named, parts, "{what}");
        }
    }
    let expected: BTreeSet<_> = ROUTES.iter().map(|r| (r.method().to_string(), r.path)).collect();
    assert_eq!(described, expected);
    assert_eq!(document["components"]["securitySchemes"]["operator"]["type"], "http");
    assert_eq!(document["components"]["securitySchemes"]["operator"]["scheme"], "bearer");
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for reference in found {
        let place = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(place.is_some(), "{reference} leads nowhere");
    }
}

#[tokio::test]
async fn every_described_method_exists_and_no_other() {
    let world = World::new().await;
    let expected: BTreeSet<_> = ROUTES.iter().map(|r| (r.method(), r.path)).collect();
    for route in &ROUTES {
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS]
        {
            let answer = world.root(method.clone(), &route.at("acme"), "").await;
            if expected.contains(&(method.clone(), route.path)) {
                assert_ne!(answer.body["code"], "unknown_path", "{method} {}", route.path);
                assert_ne!(answer.status, 405, "{method} {}", route.path);
            } else {
                answer.is_refusal(405, "method_not_allowed");
                assert!(answer.header("allow").contains(route.method().as_str()), "{method} {}", route.path);
            }
        }
    }
}

#[tokio::test]
async fn an_access_point_is_known_as_its_node_offers_it_until_it_is_revoked_with_its_container() {
    let world = World::new().await;
    world.furnish("acme").await;
    let path = "/v1/networks/acme/access/phone";
    let made = world.ok(Method::PUT, path, json!({ "public_key": KEY })).await;
    assert_eq!((&made["via"], &made["public_key"], made.get("point")), (&json!("n1"), &json!(KEY), None));
    let hosted = world.hub.find("acme").unwrap();
    let name: znet_core::name::Name = "phone".parse().unwrap();
    let actor = || znet_ctl::actor::Actor::Node(NODE);
    let attach =
        Command::Attach { node: NODE, name: name.clone(), addresses: vec![], public_key: None, port: None };
    hosted.execute(attach, actor()).await.unwrap();
    let public_key = znet_core::key::PrivateKey::from_bytes([7; 32]).public_key();
    let point = AccessPoint { public_key, port: 51_884 };
    hosted.execute(Command::OfferAccess { node: NODE, name, point }, actor()).await.unwrap();
    let shown = world.ok(Method::GET, path, Value::Null).await;
    let expected = json!({
        "public_key": public_key.to_string(), "port": 51_884, "endpoints": ["192.0.2.7:51884"]
    });
    assert_eq!((&shown["point"], &shown["addresses"]), (&expected, &made["addresses"]));
    let container = world.ok(Method::GET, "/v1/networks/acme/containers/phone", Value::Null).await;
    assert_eq!(container["addresses"], made["addresses"]);
    assert_eq!(world.ok(Method::PUT, path, json!({ "public_key": KEY })).await, shown, "it is there already");
    let all = world.ok(Method::GET, "/v1/networks/acme/access", Value::Null).await;
    assert_eq!(all, json!([shown]));

    let gone = world.ok(Method::DELETE, path, Value::Null).await;
    assert_eq!(gone, json!({ "nodes": 0, "containers": 1 }));
    let missing = world.root(Method::GET, "/v1/networks/acme/containers/phone", "").await;
    missing.is_refusal(404, "unknown_container");
    let trail = world.ok(Method::GET, "/v1/networks/acme/audit", Value::Null).await;
    let said: Vec<(&str, &str)> = trail
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["action"].as_str().unwrap(), entry["subject"].as_str().unwrap()))
        .filter(|(action, _)| action.starts_with("access."))
        .collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].1.contains("phone") && said[0].1.contains(KEY) && said[0].1.contains("n1"), "{said:?}");
    assert_eq!(said[1], ("access.offer", "access phone at port 51884 of node n1"));
    assert_eq!(said[2], ("access.revoke", "access phone"));
}
